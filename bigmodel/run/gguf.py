"""GGUF files of Llama-shaped models, as llama.cpp writes them: their tensors, dequantised, by Hugging Face's names.

The format: github.com/ggml-org/ggml, docs/gguf.md.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bigmodel.errors import UsageError

NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
LAYER = {
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj", "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
}  # fmt: skip
SIZES = {
    "block_count": "num_hidden_layers", "embedding_length": "hidden_size", "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads", "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps", "context_length": "max_position_embeddings",
    "rope.freq_base": "rope_theta", "vocab_size": "vocab_size",
}  # fmt: skip


def opened(path: Path) -> Any:
    """A GGUFReader. UsageError: not such a file, or the package that reads it is missing."""
    try:
        import gguf
    except ImportError:
        raise UsageError(f"{str(path)!r} needs the package gguf: pip install gguf") from None
    try:
        return gguf.GGUFReader(path)
    except Exception as e:  # the library raises bare ValueErrors, and numpy's
        raise UsageError(f"{str(path)!r} can't be read as GGUF: {' '.join(str(e).split())[:200]}") from e


def read(path: Path) -> tuple[dict[str, Any], dict[str, tuple[tuple[int, ...], Callable[[], np.ndarray]]]]:
    """(what a config.json would say, name -> (shape, function that dequantises it into float32)).

    Raises:
      UsageError: not GGUF, another architecture, or a tensor that isn't known.
    """
    reader = opened(path)
    fields = {key: field.contents() for key, field in reader.fields.items()}
    kind = fields.get("general.architecture")
    if kind != "llama":
        raise UsageError(f"{str(path)!r} is of the architecture {kind!r}; of GGUF files only 'llama' is known")
    config = {theirs: fields[f"llama.{key}"] for key, theirs in SIZES.items() if f"llama.{key}" in fields}
    scaling = fields.get("llama.rope.scaling.type", "none")
    if scaling != "none":
        config["rope_scaling"] = {"rope_type": scaling}
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config.get("num_key_value_heads", 0)}
    heads["attn_k"] = heads["attn_k"] or heads["attn_q"]
    held: dict[str, tuple[tuple[int, ...], Callable[[], np.ndarray]]] = {}
    for tensor in reader.tensors:
        stem, _, suffix = tensor.name.rpartition(".")
        block, _, part = stem.removeprefix("blk.").partition(".")
        known = NAMES.get(stem) or (f"model.layers.{block}.{LAYER[part]}" if part in LAYER else None)
        if known is None or suffix != "weight":
            raise UsageError(f"{str(path)!r}: no parameter of a Llama-shaped model is known for {tensor.name!r}")
        shape = tuple(int(n) for n in reversed(tensor.shape))
        held[f"{known}.weight"] = shape, functools.partial(_dequantised, tensor, shape, heads.get(part, 0))
    config["tie_word_embeddings"] = "lm_head.weight" not in held
    config.setdefault("vocab_size", held["model.embed_tokens.weight"][0][0])
    ends = {fields[key] for key in ("tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id") if key in fields}
    return {"model_type": "llama", "eos_token_id": sorted(ends), **config}, held


def _dequantised(tensor: Any, shape: tuple[int, ...], heads: int) -> np.ndarray:
    """float32. Rows of queries and keys are put back in the order in which rotary positions pair the two halves of a
    head; llama.cpp pairs neighbours, and its files have them so."""
    import gguf

    x = gguf.dequantize(tensor.data, tensor.tensor_type).reshape(shape).astype(np.float32, copy=False)
    if not heads:
        return x
    return x.reshape(heads, shape[0] // heads // 2, 2, *shape[1:]).swapaxes(1, 2).reshape(shape)
