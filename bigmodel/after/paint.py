"""Pictures from captions: codes are sampled by a run of `dalle`, decoded by the run of `dvae` that made them, and put
in order by a run of `clip`.

C captions, N samples of each, B = C N, P codes of a picture, V codes.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bigmodel import data
from bigmodel.after import evaluate, generate
from bigmodel.data import captions
from bigmodel.errors import UsageError
from bigmodel.models import dalle, dvae

AT_ONCE = 32  # streams


def rows(run: Any, encoder: Any, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """(tokens, lengths) of captions, by `encoder`, the tokenizer of a run's data."""
    size = run.config.model.seq_len
    ids = [encoder.encode(encoder.clean(text)) for text in texts]
    if empty := [text for text, found in zip(texts, ids, strict=True) if not found]:
        raise UsageError(f"a caption has no tokens: {empty[0]!r}")
    found = [captions.row([*each, encoder.separator], size, encoder.separator) for each in ids]
    tokens, lengths = zip(*found, strict=True)
    return np.stack(tokens), np.stack(lengths)


def codes(
    run: Any,
    encoder: Any,
    texts: Sequence[str],
    samples: int,
    how: generate.Sampling,
    seed: int,
    said: Any = lambda _: None,
) -> np.ndarray:
    """Codes, C N rows columns. Which is drawn at a place follows from the seed, the caption's number and the sample's.

    Args:
      said: called with the number of pictures that are done.
    """
    cfg, (tokens_CT, length_C) = run.config.model, rows(run, encoder, texts)
    number_B, sample_B = (x.reshape(-1) for x in np.mgrid[: len(texts), :samples])

    @jax.jit
    def stream(variables: Any, tokens: jax.Array, length: jax.Array, number: jax.Array, sample: jax.Array) -> Any:
        key = jax.random.key(seed)
        keys_B = jax.vmap(lambda n, s: jax.random.fold_in(jax.random.fold_in(key, n), s))(number, sample)
        apply = functools.partial(run.model.apply, variables)
        logits_BV, cache = apply(tokens, length, dalle.empty(cfg, len(tokens)), method="caption")

        def draw(logits_BV: jax.Array, place: Any) -> jax.Array:
            return generate.draw(logits_BV, how, jax.vmap(jax.random.fold_in, (0, None))(keys_B, place))

        def body(carry: Any, place: jax.Array) -> Any:
            code_B, cache = carry
            logits_BV, cache = apply(code_B, place, cache, method="step")
            return (draw(logits_BV, place), cache), code_B

        P = dalle.pictures(cfg)
        (last_B, _), found_PB = jax.lax.scan(body, (draw(logits_BV, 0), cache), jnp.arange(1, P))
        return jnp.concatenate([found_PB, last_B[None]]).T

    made = []
    for first in range(0, len(number_B), AT_ONCE):
        at = np.arange(first, first + AT_ONCE).clip(max=len(number_B) - 1)  # the last batch is filled up
        number, sample = number_B[at], sample_B[at]
        made.append(np.asarray(stream(run.variables, tokens_CT[number], length_C[number], number, sample)))
        said(min(first + AT_ONCE, len(number_B)))
    found_BP = np.concatenate(made)[: len(number_B)]
    return found_BP.reshape(len(texts), samples, cfg.grid_height, cfg.grid_width)


def autoencoder(run: Any, folder: str = "") -> Any:
    """The run of `dvae` that made the codes of a run's data, or that in `folder`, if it has the same grid."""
    manifest = data.manifest(run.config.data, run.config.run.data_dir, "codes")
    made_of = manifest.get("made_of", {})
    found = evaluate.restore(folder or made_of.get("run", ""))
    if found.config.family != "dvae":
        raise UsageError(f"{folder!r} is a run of family {found.config.family!r}, not 'dvae'")
    if found.result["run_id"] != made_of.get("run_id"):
        raise UsageError(f"the codes are of run {made_of.get('run_id')}, not of {found.result['run_id']}")
    return found


def pixels(run: Any, codes_Bhw: np.ndarray) -> np.ndarray:
    """Pictures, uint8 BHWC, of codes of a run of `dvae`."""
    decode = jax.jit(lambda variables, codes: dvae.decode(run.model, variables, codes))
    parts = [codes_Bhw[k : k + AT_ONCE] for k in range(0, len(codes_Bhw), AT_ONCE)]
    return np.concatenate([np.asarray(decode(run.variables, part)) for part in parts])


def likeness(run: Any, encoder: Any, images_BHWC: np.ndarray, texts: Sequence[str]) -> np.ndarray:
    """Cosines, B C, of pictures and captions, by a run of `clip`. UsageError: it isn't one, or reads another size."""
    cfg = run.config.model
    if run.config.family != "clip":
        raise UsageError(f"a run of family {run.config.family!r} can't put pictures in order: it must be 'clip'")
    if images_BHWC.shape[1:] != (cfg.image_height, cfg.image_width, cfg.channels):
        own, size = "x".join(map(str, images_BHWC.shape[1:])), f"{cfg.image_height}x{cfg.image_width}x{cfg.channels}"
        raise UsageError(f"the pictures are {own}, and the run of clip reads {size}")
    tokens, length = rows(run, encoder, texts)
    text_CE = run.model.apply(run.variables, tokens, length, method="captions")
    made = []
    for k in range(0, len(images_BHWC), AT_ONCE):
        batch = {"image": images_BHWC[k : k + AT_ONCE], "tokens": tokens, "length": length}
        made.append(run.model.apply(run.variables, run.family.inputs(cfg, batch)[0], method="pictures"))
    return np.asarray(jnp.concatenate(made) @ text_CE.T)
