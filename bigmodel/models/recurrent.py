"""Recurrent language models: LSTM (Hochreiter & Schmidhuber 1997) and RNN (Elman 1990), stacked.

B batch, L length, D width, U gates, V vocab, N depth.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from bigmodel.errors import check_ranges, choose
from bigmodel.models import layers, losses
from bigmodel.models.layouts import Layout
from bigmodel.ops import recurrence, sharding

GATES = {"lstm": 4, "rnn": 1}  # of an LSTM, in torch's order: input, forget, candidate, output


def get_config() -> ConfigDict:
    return ConfigDict(
        dict(
            cell="lstm",  # or rnn
            width=256,
            depth=2,
            vocab_size=256,  # from the data where there is some
            seq_len=256,  # from the data where there is some
            tied_head=False,
            forget_bias=1.0,  # added to the LSTM's forget gate at the start (Jozefowicz et al. 2015)
            dropout=0.0,  # between layers (Zaremba et al. 2014, arXiv:1409.2329)
            init_std=0.0,  # 0: 1 / sqrt(fan_in)
            # A window starts from the state that the one before it ended with, and is what follows it in the text: row
            # r of batches reads the r-th part of the data in order. Gradients end at a window's beginning.
            carry=False,
            dtype="float32",  # compute; parameters are float32
        )
    )


def finalize(cfg: ConfigDict) -> None:
    sizes = dict.fromkeys(("width", "depth", "vocab_size", "seq_len"), "[1, inf)")
    check_ranges("config.model.", cfg, init_std="[0, inf)", dropout="[0, 1)", **sizes)
    choose("config.model.cell", cfg.cell, GATES)
    choose("config.model.dtype", cfg.dtype, ["float32", "bfloat16"])


def rung(width: int, depth: int) -> dict[str, Any]:
    return {"model.width": width, "model.depth": depth}


def _torch(cell: str) -> Layout:
    """Of torch's nn.LSTM or nn.RNN, whose two biases add up to the one here."""
    layer = {f"{cell}.weight_ih_l{{}}": "blocks/input", f"{cell}.weight_hh_l{{}}": "blocks/recurrent"}
    biases = {f"{cell}.bias_{side}_l{{}}": "blocks/bias" for side in ("ih", "hh")}
    head = {"head.weight": "head", "head.bias": "head_bias"}
    return Layout(
        names={"embedding.weight": "embed/tokens", **layer, **biases, **head},
        sums=True,
        sizes=dict(vocab_size="vocab_size", seq_len="seq_len", hidden_size="width", num_layers="depth"),
        always=dict(cell=cell, forget_bias=0.0),  # it is in the bias
        choices={"tie_word_embeddings": {False: {"tied_head": False}}},
        extra=dict(model_type=cell),
    )


def _zaremba(width: int, length: int, dropout: float, total: int) -> dict[str, Any]:
    """Its count: 2 tables VD, 2 layers of 8 D^2 + 4 D, V biases."""
    return dict(
        source="Zaremba et al. 2014, arXiv:1409.2329; shape: github.com/tensorflow/models, rnn/ptb/ptb_word_lm.py",
        params=total,
        batch=20 * length,
        model=dict(width=width, seq_len=length, dropout=dropout, depth=2, vocab_size=10_000, forget_bias=0.0),
    )


PUBLISHED = {
    "lstm-ptb-small": _zaremba(200, 20, 0.0, 4_651_600),
    "lstm-ptb-medium": _zaremba(650, 35, 0.5, 19_775_200),
    "lstm-ptb-large": _zaremba(1500, 35, 0.65, 66_022_000),
}
WEIGHTS = {cell: _torch(cell) for cell in GATES}
RULES = (
    (r"embed/tokens$", ("vocab", "embed")),
    (r"blocks/(input|recurrent)$", ("depth", "embed", "gate", "ffn")),
    (r"blocks/bias$", ("depth", "gate", "ffn")),
    (r"^head$", ("embed", "vocab")),
    (r"^head_bias$", (None,)),
)


def spec(cfg: Any) -> dict[str, tuple[tuple[int, ...], str]]:
    """One example: seq_len inputs and, one to the right, their targets."""
    return {"tokens": ((cfg.seq_len + 1,), "int32")}


def inputs(cfg: Any, batch: Any) -> tuple[jax.Array]:
    """What Model.__call__ takes of a batch."""
    return (batch["tokens"][:, :-1],)


def likelihood(cfg: Any) -> range:
    """The places of a window's tokens that are predicted, each given those before it: bits per byte follow from it."""
    return range(1, cfg.seq_len + 1)


def units(cfg: Any) -> int:
    """Tokens of one example."""
    return int(cfg.seq_len)


def carries(cfg: Any) -> bool:
    """Whether a window goes on from the state at the end of the one before it, so that data is read in order."""
    return bool(cfg.carry)


def decomposes(cfg: Any) -> bool:
    """A carried state is of a row of the batch: the batch stays whole."""
    return not cfg.carry


def footprint(cfg: Any) -> dict[str, Any]:
    """What a pod's layout estimates activations from: per token and unit the gates before and after, the state, its
    tanh and the state before. Only examples are divided: neither time nor, in a loop over it, the state."""
    each = cfg.seq_len * cfg.width
    cell = each * (2 * GATES[cfg.cell] + 3)
    return {
        "itemsize": 2 if cfg.dtype == "bfloat16" else 4,
        "layers": cfg.depth,
        "entering": cfg.depth * each,
        "kept": {"none": cfg.depth * cell, "dots": cfg.depth * cell},  # the loop's residuals are no products
        "block": 1.5 * cell,
        "ends": 2 * each,
        "logits": cfg.seq_len * cfg.vocab_size,
        "heads": 1,
        "length": 1,
    }


def flops(cfg: Any) -> float:
    """Forward FLOPs of one example of seq_len tokens: 2 per multiply-add of every matrix product.

    Per layer and token 2 U D^2 for the input and as many for the state, U = 4 gates in an LSTM; 2DV for the head.
    """
    L, D = cfg.seq_len, cfg.width
    return float(L * (cfg.depth * 2 * GATES[cfg.cell] * 2 * D * D + 2 * D * cfg.vocab_size))


def _lstm(state: Any, x_BUD: jax.Array) -> Any:
    i, f, g, o = (x_BUD[:, u] for u in range(4))
    cell = jax.nn.sigmoid(f) * state["cell"] + jax.nn.sigmoid(i) * jnp.tanh(g)
    return {"hidden": jax.nn.sigmoid(o) * jnp.tanh(cell), "cell": cell}


def _rnn(state: Any, x_BUD: jax.Array) -> Any:
    return {"hidden": jnp.tanh(x_BUD[:, 0])}


CELLS = {"lstm": _lstm, "rnn": _rnn}


class Block(nn.Module):
    """One layer over a whole window: the inputs' products at once, then the states', one after another."""

    cfg: Any

    @nn.compact
    def __call__(self, x_BLD: jax.Array, state: Any, rows_B: Any, train: bool) -> tuple[jax.Array, Any]:
        cfg, dtype = self.cfg, x_BLD.dtype
        D, U = cfg.width, GATES[cfg.cell]
        start = layers.normal(cfg.init_std, D)
        x_BLUD = layers.linear(x_BLD, self.param("input", start, (D, U, D)))
        w_DUD = self.param("recurrent", start, (D, U, D)).astype(dtype)
        x_BLUD = x_BLUD + self.param("bias", nn.initializers.zeros, (U, D)).astype(dtype)
        if cfg.cell == "lstm":
            x_BLUD = x_BLUD.at[:, :, 1].add(cfg.forget_bias)

        w_DUD = sharding.constrain(w_DUD, None, None, "ffn")  # gathered here, and not at each token
        state, y_LBD = recurrence.recur(CELLS[cfg.cell], state, x_BLUD.swapaxes(0, 1), w_DUD)
        y_BLD = sharding.constrain(y_LBD.swapaxes(0, 1), "batch", None, None)
        if cfg.dropout:
            y_BLD = layers.Dropout(cfg.dropout)(y_BLD, rows_B, train)
        return y_BLD, state


class Embed(nn.Module):
    cfg: Any

    def setup(self) -> None:
        start = nn.initializers.normal(self.cfg.init_std or 1.0)  # a table has no fan-in
        self.tokens = self.param("tokens", start, (self.cfg.vocab_size, self.cfg.width))

    def __call__(self, tokens_BL: jax.Array) -> jax.Array:
        return self.tokens[tokens_BL]


class Model(nn.Module):
    cfg: Any  # frozen `model` section, finalised

    def setup(self) -> None:
        cfg = self.cfg
        self.embed = Embed(cfg)
        self.blocks = layers.stack(Block, cfg.depth, scan=cfg.depth > 8)(cfg)
        if not cfg.tied_head:
            self.head = self.param("head", layers.normal(cfg.init_std, cfg.width), (cfg.width, cfg.vocab_size))
        self.head_bias = self.param("head_bias", nn.initializers.zeros, (cfg.vocab_size,))

    def __call__(self, tokens_BL: jax.Array, train: bool = False, rows_B: jax.Array | None = None) -> jax.Array:
        """Logits BLV for the token after each. In training a carried state is read and, where 'carry' is mutable, kept;
        else a window starts from zeros. rows: which row of the step's batch each example is, for dropout."""
        return self.logits(self._window(tokens_BL, train, rows_B))

    def features(self, tokens_BL: jax.Array, train: bool, rows_B: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
        """As __call__, but what the head reads, BLD, its matrix, VD, and its bias, V."""
        x_BLD = self._window(tokens_BL, train, rows_B)
        return x_BLD, self.embed.tokens if self.cfg.tied_head else self.head.T, self.head_bias

    def step(self, tokens_BL: jax.Array, cache: Any, last: bool = False) -> tuple[jax.Array, Any]:
        """Goes on from `cache` (see `init_cache`): (logits BLV, the cache after them); `last`: of the last place,
        B1V."""
        x_BLD, state = self._forward(tokens_BL, cache["layers"], None, False)
        logits = self.logits(x_BLD[:, -1:] if last else x_BLD)
        return logits, {"layers": state, "length": cache["length"] + tokens_BL.shape[1]}

    def logits(self, x_BLD: jax.Array) -> jax.Array:
        head_DV = self.embed.tokens.T if self.cfg.tied_head else self.head
        logits_BLV = layers.linear(x_BLD, head_DV) + self.head_bias.astype(x_BLD.dtype)
        return sharding.constrain(logits_BLV, "batch", None, "vocab")

    def _window(self, tokens_BL: jax.Array, train: bool, rows_B: Any) -> jax.Array:
        zeros = init_cache(self.cfg, len(tokens_BL))["layers"]
        if not self.cfg.carry or not (train or self.is_initializing()):
            return self._forward(tokens_BL, zeros, rows_B, train)[0]
        state = zeros if self.is_initializing() else self.get_variable("carry", "layers")
        x_BLD, after = self._forward(tokens_BL, state, rows_B, train)
        if self.is_mutable_collection("carry"):
            self.put_variable("carry", "layers", jax.lax.stop_gradient(after) if train else zeros)
        return x_BLD

    def _forward(self, tokens_BL: jax.Array, state: Any, rows_B: Any, train: bool) -> tuple[jax.Array, Any]:
        x_BLD = self.embed(tokens_BL).astype(self.cfg.dtype)
        return self.blocks(x_BLD, state, rows_B, train)


def init_cache(cfg: Any, batch_size: int, size: int = 0) -> dict[str, Any]:
    """The state before any token, zeros, whatever the size: {'layers': {'hidden', and of an LSTM 'cell'} NBD, 'length'
    ()}."""
    zeros = jnp.zeros((cfg.depth, batch_size, cfg.width), cfg.dtype)
    names = ("hidden", "cell") if cfg.cell == "lstm" else ("hidden",)
    return {"layers": dict.fromkeys(names, zeros), "length": jnp.zeros((), jnp.int32)}


def loss(model: Model, variables: Any, batch: Any, rng: jax.Array, train: bool) -> tuple[jax.Array, Any]:
    """Next-token cross entropy in nats per token; the state at the end of the windows where it is carried."""
    tokens, rows_B = batch["tokens"], layers.rows_of(batch)
    mutable = ["carry"] if train and model.cfg.carry else []

    def read(whole: bool) -> tuple[Any, Any]:
        method, rngs = Model.__call__ if whole else Model.features, {"dropout": rng}
        return model.apply(variables, tokens[:, :-1], train, rows_B, rngs=rngs, mutable=mutable, method=method)

    scalar, metrics, new_state = losses.of_vocabulary(read, tokens[:, 1:], batch["weight"], model.cfg.vocab_size)
    return scalar, (metrics, dict(new_state))
