"""Published encoder-decoders, and where their parameters are in checkpoints: `encdec.PUBLISHED`, `encdec.WEIGHTS`."""

from __future__ import annotations

from typing import Any

from bigmodel.models import positions
from bigmodel.models.layouts import GELUS, Layout, activation

VASWANI = "Vaswani et al. 2017, arXiv:1706.03762, Table 3"
# Section 5.1 says "about 37000", by which N = 2 is 6.5 % below its printed count; by this, all rows are within 4 %.
VOCABULARY = 39_000
RAFFEL = "Raffel et al. 2020, arXiv:1910.10683, section 3.7"


def _vaswani(printed: str = "", **shape: Any) -> dict[str, Any]:
    model = dict(dict(depth=6, width=512, num_heads=8, ffn=2048), **shape)
    row: dict[str, Any] = dict(
        source=VASWANI, batch=25_000, model=dict(vocab_size=VOCABULARY, seq_len=512, start_token=0, **model)
    )
    return row | (dict(printed=printed, tolerance=0.05) if printed else {})


def _t5(depth: int, width: int, ffn: int, num_heads: int, head_dim: int, total: int) -> dict[str, Any]:
    return dict(
        source=RAFFEL,
        params=total,
        model=dict(
            depth=depth, width=width, ffn=ffn, num_heads=num_heads, head_dim=head_dim, vocab_size=32128, seq_len=512,
            norm="rmsnorm", norm_placement="pre", norm_eps=1e-6, bias=False, position="relative_bias", score_scale=1.0,
            scale_embed=False, scale_logits=True, smoothing=0.0, start_token=0,
        ),
    )  # fmt: skip


ROWS: dict[str, dict[str, Any]] = {
    "transformer-base": _vaswani("65M"),
    "transformer-big": _vaswani("213M", width=1024, ffn=4096, num_heads=16, dropout=0.3),
    # (A): the table prints no counts
    **{f"transformer-h{h}": _vaswani(num_heads=h, head_dim=512 // h) for h in (1, 4, 16, 32)},
    # (B): keys and queries alone
    "transformer-dk16": _vaswani("58M", head_dim=16, value_dim=64),
    "transformer-dk32": _vaswani("60M", head_dim=32, value_dim=64),
    # (C)
    "transformer-n2": _vaswani("36M", depth=2),
    "transformer-n4": _vaswani("50M", depth=4),
    "transformer-n8": _vaswani("80M", depth=8),
    "transformer-d256": _vaswani("28M", width=256, head_dim=32),
    "transformer-d1024": _vaswani("168M", width=1024, head_dim=128),
    "transformer-ff1024": _vaswani("53M", ffn=1024),
    "transformer-ff4096": _vaswani("90M", ffn=4096),
    # (D) and (E): the table prints no counts
    "transformer-dropout0": _vaswani(dropout=0.0),
    "transformer-dropout2": _vaswani(dropout=0.2),
    "transformer-smoothing0": _vaswani(smoothing=0.0),
    "transformer-smoothing2": _vaswani(smoothing=0.2),
    "transformer-learned": _vaswani(position="learned"),
    "t5-small": _t5(6, 512, 2048, 8, 64, 60_506_624),
    "t5-base": _t5(12, 768, 3072, 12, 64, 222_903_552),
    "t5-large": _t5(24, 1024, 4096, 16, 64, 737_668_096),
    "t5-3b": _t5(24, 1024, 16384, 32, 128, 2_851_598_336),
    "t5-11b": _t5(24, 1024, 65536, 128, 128, 11_307_321_344),
}


def _t5_names(up: dict[str, str]) -> dict[str, str]:
    """up: what the feed-forward layer reads by, theirs -> ours."""
    # Published files hold a table of positions for attention to the encoder, too, which T5 doesn't use.
    unused = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
    names = {"shared.weight": "embed/tokens", "lm_head.weight": "head", unused: ""}
    for side in ("encoder", "decoder"):
        layers = [("SelfAttention", "attention"), ("EncDecAttention", "cross_attention")][: 1 + (side == "decoder")]
        names[f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"] = f"embed/{side}_bias"
        names[f"{side}.final_layer_norm.weight"] = f"{side}_norm/scale"
        for i, (theirs, ours) in enumerate(layers):
            for letter, name in dict(q="query", k="key", v="value", o="out").items():
                names[f"{side}.block.{{}}.layer.{i}.{theirs}.{letter}.weight"] = f"{side}/{ours}/{name}"
            norm = "norm_attention" if ours == "attention" else "norm_cross"
            names[f"{side}.block.{{}}.layer.{i}.layer_norm.weight"] = f"{side}/{norm}/scale"
        last = f"{side}.block.{{}}.layer.{len(layers)}"
        names |= {
            **{f"{last}.DenseReluDense.{theirs}.weight": f"{side}/mlp/{ours}" for theirs, ours in up.items()},
            f"{last}.DenseReluDense.wo.weight": f"{side}/mlp/down",
            f"{last}.layer_norm.weight": f"{side}/norm_mlp/scale",
        }
    return names


def _marian_names() -> dict[str, str]:
    names = {"final_logits_bias": "output_bias"}
    for side in ("encoder", "decoder"):
        layers = [("self_attn", "attention", "norm_attention"), ("encoder_attn", "cross_attention", "norm_cross")]
        for theirs, ours, norm in layers[: 1 + (side == "decoder")]:
            start = f"{side}.layers.{{}}.{theirs}"
            for proj, name in dict(q_proj="query", k_proj="key", v_proj="value", out_proj="out").items():
                names[f"{start}.{proj}.weight"] = f"{side}/{ours}/{name}"
                names[f"{start}.{proj}.bias"] = f"{side}/{ours}/{name}_bias"
            names[f"{start}_layer_norm.weight"] = f"{side}/{norm}/scale"
            names[f"{start}_layer_norm.bias"] = f"{side}/{norm}/bias"
        for theirs, ours in dict(fc1="up", fc2="down").items():
            names[f"{side}.layers.{{}}.{theirs}.weight"] = f"{side}/mlp/{ours}"
            names[f"{side}.layers.{{}}.{theirs}.bias"] = f"{side}/mlp/{ours}_bias"
        names[f"{side}.embed_positions.weight"] = ""  # sinusoids
        names[f"{side}.layers.{{}}.final_layer_norm.weight"] = f"{side}/norm_mlp/scale"
        names[f"{side}.layers.{{}}.final_layer_norm.bias"] = f"{side}/norm_mlp/bias"
    return names


TIES = dict.fromkeys(("lm_head.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight"), "embed/tokens")


def _t5_layout(up: dict[str, str], *feed_forward: tuple[str, str]) -> Layout:
    return Layout(
        names=_t5_names(up),
        ties=TIES,
        sizes=dict(
            vocab_size="vocab_size", n_positions="seq_len", d_model="width", num_layers="depth",
            num_decoder_layers="decoder_depth", num_heads="num_heads", d_kv="head_dim", d_ff="ffn",
            layer_norm_epsilon="norm_eps", decoder_start_token_id="start_token",
        ),
        choices={
            "feed_forward_proj": activation(*feed_forward),
            "tie_word_embeddings": {
                True: {"tied_head": True, "scale_logits": True},
                False: {"tied_head": False, "scale_logits": False},
            },
            "scale_decoder_outputs": {True: {"scale_logits": True}, False: {"scale_logits": False}},
        },
        only=dict(relative_attention_num_buckets=positions.BUCKETS, relative_attention_max_distance=positions.FARTHEST),
        defaults=dict(
            n_positions=512, num_decoder_layers=0, layer_norm_epsilon=1e-6, feed_forward_proj="relu",
            tie_word_embeddings=True, decoder_start_token_id=0,
        ),
        always=dict(
            norm="rmsnorm", norm_placement="pre", bias=False, position="relative_bias", score_scale=1.0,
            scale_embed=False,
        ),
        extra=dict(architectures=["T5ForConditionalGeneration"], model_type="t5", is_encoder_decoder=True),
        own=dict(pad_token_id=0, eos_token_id=1),
    )  # fmt: skip


WEIGHTS = {
    "t5": _t5_layout({"wi": "up"}, ("relu", "relu")),
    "t5-1.1": _t5_layout({"wi_0": "gate", "wi_1": "up"}, ("gated-gelu", "geglu_tanh"), ("gated-silu", "swiglu")),
    "marian": Layout(
        names={"shared.weight": "embed/tokens", "lm_head.weight": "head", **_marian_names()},
        prefix="model.",
        rows=("final_logits_bias",),
        bare=("final_logits_bias", "lm_head"),
        ties=TIES,
        sizes=dict(
            vocab_size="vocab_size", max_position_embeddings="seq_len", d_model="width", encoder_layers="depth",
            decoder_layers="decoder_depth", encoder_attention_heads="num_heads", decoder_attention_heads="num_heads",
            encoder_ffn_dim="ffn", decoder_ffn_dim="ffn", scale_embedding="scale_embed",
            decoder_start_token_id="start_token",
        ),
        choices={
            "activation_function": activation(*GELUS, ("swish", "silu"), ("silu", "silu")),
            "tie_word_embeddings": {True: {"tied_head": True}},
        },
        only=dict(share_encoder_decoder_embeddings=True, normalize_before=False, normalize_embedding=False),
        defaults=dict(scale_embedding=False, activation_function="gelu", tie_word_embeddings=True),
        always=dict(attention_bias=True, output_bias=True),
        extra=dict(architectures=["MarianMTModel"], model_type="marian", is_encoder_decoder=True),
        own=dict(pad_token_id="start_token"),  # as published; transformers' default is past most vocabularies
    ),
}  # fmt: skip
