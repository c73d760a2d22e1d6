"""Published decoders of Llama's block: RoPE, RMSNorm, SwiGLU, no biases, grouped keys. Part of `decoder.PUBLISHED`.

Shapes are those of github.com/Lightning-AI/litgpt, litgpt/config.py, which names each model's own config.json.
Counts are of a closed formula: tables + depth (2 D + 2 D H K + 2 D G K + 3 D F) + D.
"""

from __future__ import annotations

from typing import Any

SHAPES = "; shape: github.com/Lightning-AI/litgpt, litgpt/config.py"
TOUVRON = "Touvron et al. 2023, arXiv:2307.09288" + SHAPES
CODE = "Roziere et al. 2023, arXiv:2308.12950" + SHAPES
LLAMA3 = "Llama Team 2024, arXiv:2407.21783" + SHAPES
OPEN = "Geng & Liu 2023, github.com/openlm-research/open_llama" + SHAPES
FALCON3 = "TII 2024, its model cards" + SHAPES
SMOL = "Allal et al. 2025, arXiv:2502.02737" + SHAPES


def _llama(
    source: str, total: int, shape: tuple[int, int, int, int, int], vocabulary: int, length: int, **more: Any
) -> dict[str, Any]:
    """shape: depth, width, heads, heads of keys and values, ffn."""
    depth, width, heads, groups, ffn = shape
    model = dict(
        depth=depth, width=width, num_heads=heads, num_kv_heads=groups, ffn=ffn, vocab_size=vocabulary, seq_len=length,
        activation="swiglu", norm="rmsnorm", position="rope", bias=False, tied_head=False,
    )  # fmt: skip
    return dict(source=source, params=total, model=model | more)


BASE1M, BASE500K = dict(rope_base=1e6), dict(rope_base=500_000.0)
TIED = dict(tied_head=True)
F3 = dict(rope_base=1_000_042.0, norm_eps=1e-6)

ROWS: dict[str, dict[str, Any]] = {
    "open-llama-3b": _llama(OPEN, 3_426_473_600, (26, 3200, 32, 32, 8640), 32000, 2048, norm_eps=1e-6),
    "open-llama-7b": _llama(OPEN, 6_738_415_616, (32, 4096, 32, 32, 11008), 32000, 2048, norm_eps=1e-6),
    "open-llama-13b": _llama(OPEN, 13_015_864_320, (40, 5120, 40, 40, 13824), 32000, 2048, norm_eps=1e-6),
    "tinyllama-1.1b": _llama(
        "Zhang et al. 2024, arXiv:2401.02385" + SHAPES, 1_100_048_384, (22, 2048, 32, 4, 5632), 32000, 2048
    ),
    "llama2-7b": _llama(TOUVRON, 6_738_415_616, (32, 4096, 32, 32, 11008), 32000, 4096),
    "llama2-13b": _llama(TOUVRON, 13_015_864_320, (40, 5120, 40, 40, 13824), 32000, 4096),
    "llama2-70b": _llama(TOUVRON, 68_976_648_192, (80, 8192, 64, 8, 28672), 32000, 4096),
    "codellama-7b": _llama(CODE, 6_738_546_688, (32, 4096, 32, 32, 11008), 32016, 16384, **BASE1M),
    "codellama-13b": _llama(CODE, 13_016_028_160, (40, 5120, 40, 40, 13824), 32016, 16384, **BASE1M),
    "codellama-34b": _llama(CODE, 33_743_970_304, (48, 8192, 64, 8, 22016), 32000, 16384, **BASE1M),
    "codellama-70b": _llama(CODE, 68_976_910_336, (80, 8192, 64, 8, 28672), 32016, 16384, **BASE1M),
    "llama3-8b": _llama(LLAMA3, 8_030_261_248, (32, 4096, 32, 8, 14336), 128256, 8192, **BASE500K),
    "llama3-70b": _llama(LLAMA3, 70_553_706_496, (80, 8192, 64, 8, 28672), 128256, 8192, **BASE500K),
    "falcon3-1b": _llama(FALCON3, 1_669_408_768, (18, 2048, 8, 4, 8192), 131072, 4096, **F3),
    "falcon3-3b": _llama(FALCON3, 3_227_655_168, (22, 3072, 12, 4, 9216), 131072, 32768, **F3),
    "falcon3-7b": _llama(FALCON3, 7_455_550_464, (28, 3072, 12, 4, 23040), 131072, 32768, **F3),
    "falcon3-10b": _llama(FALCON3, 10_305_653_760, (40, 3072, 12, 4, 23040), 131072, 32768, **F3),
    "smollm2-360m": _llama(SMOL, 361_821_120, (32, 960, 15, 5, 2560), 49152, 8192, **TIED, rope_base=1e5),
    "smollm2-1.7b": _llama(SMOL, 1_711_376_384, (24, 2048, 32, 32, 8192), 49152, 8192, **TIED, rope_base=1.3e5),
}  # fmt: skip
