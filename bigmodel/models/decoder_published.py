"""Published decoders: shapes by the names that the field uses, with what their papers print, and how their checkpoints
are written. `decoder.PUBLISHED`, `decoder.WEIGHTS`."""

from __future__ import annotations

from typing import Any

from bigmodel.models import llama_published
from bigmodel.models.layouts import GELUS, Layout, activation


def _gpt2(depth: int, width: int, num_heads: int, total: int) -> dict[str, Any]:
    return dict(
        source="Radford et al. 2019; counts: github.com/openai/gpt-2 model card and published weights",
        params=total,
        model=dict(depth=depth, width=width, num_heads=num_heads, vocab_size=50257, seq_len=1024),
    )


M = 2**20  # tokens a step, as the tables print them


def _gpt3(
    printed: str, batch: float, depth: int, width: int, num_heads: int, head_dim: int, note: str = ""
) -> dict[str, Any]:
    return dict(
        batch=int(batch * M),
        source="Brown et al. 2020, arXiv:2005.14165, Table 2.1",
        printed=printed,
        note=note,
        model=dict(depth=depth, width=width, num_heads=num_heads, head_dim=head_dim, vocab_size=50257, seq_len=2048),
    )


def _opt(batch: float, depth: int, width: int, num_heads: int, total: int, **shape: Any) -> dict[str, Any]:
    """OPT's context is 2048; its table of positions has two rows more, which a padding symbol once needed."""
    return dict(
        batch=int(batch * M),  # of the same repository's launcher
        source="Zhang et al. 2022, arXiv:2205.01068, Table 1; shapes: github.com/facebookresearch/metaseq",
        params=total,
        model=dict(
            depth=depth, width=width, num_heads=num_heads, vocab_size=50272, seq_len=2048,
            position_offset=2, activation="relu", **shape,
        ),
    )  # fmt: skip


GOPHER = "Rae et al. 2021, arXiv:2112.11446, Table 1"
CHINCHILLA = "Hoffmann et al. 2022, arXiv:2203.15556, Table "


def _gopher(printed: str, source: str, depth: int, width: int, heads: int, kv: int, ffn: int = 0) -> dict[str, Any]:
    """Relative positions and RMSNorm, no biases; one table of 32,000 (Rae et al. 2021; Hoffmann et al. 2022)."""
    return dict(
        source=source,
        printed=printed,
        model=dict(
            depth=depth, width=width, num_heads=heads, head_dim=kv, ffn=ffn, vocab_size=32000, seq_len=2048,
            position="relative", norm="rmsnorm", bias=False,
        ),
    )  # fmt: skip


# Hoffmann et al. 2022, Table A9, as transcribed by scaling_laws.ipynb of github.com/karpathy/nanoGPT.
# Millions of parameters as printed: width, ffn, kv size, heads, layers.
TABLE_A9 = """
44: 512,2048,64,8,8 | 57: 576,2304,64,9,9 | 74: 640,2560,64,10,10 | 90: 640,2560,64,10,13 | 106: 640,2560,64,10,16
117: 768,3072,64,12,12 | 140: 768,3072,64,12,15 | 163: 768,3072,64,12,18 | 175: 896,3584,64,14,14
196: 896,3584,64,14,16 | 217: 896,3584,64,14,18 | 251: 1024,4096,64,16,16 | 278: 1024,4096,64,16,18
306: 1024,4096,64,16,20 | 425: 1280,5120,128,10,18 | 489: 1280,5120,128,10,21 | 509: 1408,5632,128,11,18
552: 1280,5120,128,10,24 | 587: 1408,5632,128,11,21 | 632: 1536,6144,128,12,19 | 664: 1408,5632,128,11,24
724: 1536,6144,128,12,22 | 816: 1536,6144,128,12,25 | 893: 1792,7168,128,14,20 | 1018: 1792,7168,128,14,23
1143: 1792,7168,128,14,26 | 1266: 2048,8192,128,16,22 | 1424: 2176,8704,128,17,22 | 1429: 2048,8192,128,16,25
1593: 2048,8192,128,16,28 | 1609: 2176,8704,128,17,25 | 1731: 2304,9216,128,18,24 | 1794: 2176,8704,128,17,28
2007: 2304,9216,128,18,28 | 2283: 2304,9216,128,18,32 | 2298: 2560,10240,128,20,26 | 2639: 2560,10240,128,20,30
2980: 2560,10240,128,20,34 | 3530: 2688,10752,128,22,36 | 3802: 2816,11264,128,22,36 | 4084: 2944,11776,128,22,36
4516: 3072,12288,128,24,36 | 6796: 3584,14336,128,28,40 | 9293: 4096,16384,128,32,42 | 11452: 4352,17408,128,32,47
12295: 4608,18432,128,36,44 | 12569: 4608,18432,128,32,47 | 13735: 4864,19456,128,32,47
14940: 4992,19968,128,32,49 | 16183: 5120,20480,128,40,47
"""


def table_a9() -> dict[int, dict[str, Any]]:
    """Printed millions -> the published row."""
    out = {}
    for cell in TABLE_A9.replace("\n", "|").split("|"):
        if cell.strip():
            printed, _, numbers = cell.partition(":")
            width, ffn, kv, heads, depth = map(int, numbers.split(","))
            out[int(printed)] = _gopher(f"{int(printed)}M", CHINCHILLA + "A9", depth, width, heads, kv, ffn)
    return out


XL = (
    "the table prints 24 heads of 128 at width 2048, though 24 x 128 = 3072; built with the 16 heads of 128 that fill "
    "2048 (as printed, --config.model.num_heads=24, it has 1.5B)"
)
B13 = "the table prints 40 heads of 128 at width 5140, though 40 x 128 = 5120; built as printed"

ROWS: dict[str, dict[str, Any]] = {
    "gpt2": _gpt2(12, 768, 12, 124_439_808),
    "gpt2-medium": _gpt2(24, 1024, 16, 354_823_168),
    "gpt2-large": _gpt2(36, 1280, 20, 774_030_080),
    "gpt2-xl": _gpt2(48, 1600, 25, 1_557_611_200),
    "gpt3-125m": _gpt3("125M", 0.5, 12, 768, 12, 64),
    "gpt3-350m": _gpt3("350M", 0.5, 24, 1024, 16, 64),
    "gpt3-760m": _gpt3("760M", 0.5, 24, 1536, 16, 96),
    "gpt3-1.3b": _gpt3("1.3B", 1, 24, 2048, 16, 128, XL),
    "gpt3-2.7b": _gpt3("2.7B", 1, 32, 2560, 32, 80),
    "gpt3-6.7b": _gpt3("6.7B", 2, 32, 4096, 32, 128),
    "gpt3-13b": _gpt3("13.0B", 2, 40, 5140, 40, 128, B13),
    "gpt3-175b": _gpt3("175.0B", 3.2, 96, 12288, 96, 128),
    "opt-125m": _opt(0.5, 12, 768, 12, 125_239_296),
    "opt-350m": _opt(0.5, 24, 1024, 16, 331_196_416, embed_dim=512, norm_placement="post", final_norm=False),
    "opt-1.3b": _opt(1, 24, 2048, 32, 1_315_758_080),
    "opt-2.7b": _opt(1, 32, 2560, 32, 2_651_596_800),
    "opt-6.7b": _opt(2, 32, 4096, 32, 6_658_473_984),
    "opt-13b": _opt(4, 40, 5120, 40, 12_853_473_280),
    "opt-30b": _opt(4, 48, 7168, 56, 29_974_540_288),
    "opt-66b": _opt(2, 64, 9216, 72, 65_719_701_504),
    "opt-175b": _opt(2, 96, 12288, 96, 174_604_468_224),
    "gopher-44m": _gopher("44M", GOPHER, 8, 512, 16, 32),
    "gopher-117m": _gopher("117M", GOPHER, 12, 768, 12, 64),
    "gopher-417m": _gopher("417M", GOPHER, 12, 1536, 12, 128),
    "gopher-1.4b": _gopher("1.4B", GOPHER, 24, 2048, 16, 128),
    "gopher-7.1b": _gopher("7.1B", GOPHER, 32, 4096, 32, 128),
    # Their batches were doubled midway (Hoffmann et al. 2022, Table 4).
    "gopher-280b": _gopher("280B", GOPHER, 80, 16384, 128, 128) | dict(batch=3 * M),
    "chinchilla-70b": _gopher("70B", CHINCHILLA + "4", 80, 8192, 64, 128) | dict(batch=3 * M // 2),
    **{f"chinchilla-{millions}m": row for millions, row in table_a9().items()},
    "lamda-137b": dict(
        source="Thoppilan et al. 2022, arXiv:2201.08239, section 3; T5's relative bias",
        printed="137B",
        model=dict(
            depth=64, width=8192, num_heads=128, head_dim=128, ffn=65536, activation="geglu", norm="rmsnorm",
            position="relative_bias", bias=False, vocab_size=32000, seq_len=2048,
        ),
    ),
    "glm-130b": dict(
        source="Zeng et al. 2022, arXiv:2210.02414; shape: github.com/THUDM/GLM-130B",
        params=128_697_794_560,
        model=dict(
            depth=70, width=12288, num_heads=96, ffn=32768, activation="geglu", position="rope",
            norm_placement="deepnorm", objective="infill", seq_len=2048,
            vocab_size=150524,  # and four marks: 150,528 rows
        ),
    ),
    "smollm2-135m": dict(
        source="Allal et al. 2025, arXiv:2502.02737; shape: its published config",
        params=134_515_008,
        model=dict(
            depth=30, width=576, num_heads=9, num_kv_heads=3, ffn=1536, activation="swiglu", norm="rmsnorm",
            position="rope", rope_base=100_000.0, bias=False, vocab_size=49152, seq_len=8192,
        ),
    ),
    **llama_published.ROWS,
}  # fmt: skip


def _both(theirs: str, ours: str, bias: str = "") -> dict[str, str]:
    """Names of a matrix and of its bias, by default our path and `_bias`."""
    return {f"{theirs}.weight": ours, f"{theirs}.bias": bias or f"{ours}_bias"}


def _norm(theirs: str, ours: str) -> dict[str, str]:
    return _both(theirs, f"{ours}/scale", f"{ours}/bias")


QKV = ("query", "key", "value")
TIED: dict[Any, dict[str, Any]] = {True: {"tied_head": True}, False: {"tied_head": False}}
HEAD = {"lm_head.weight": "head"}

GPT2 = Layout(
    names={
        "wte.weight": "embed/tokens",
        "wpe.weight": "embed/positions",
        **_norm("h.{}.ln_1", "blocks/norm_attention"),
        **_norm("h.{}.ln_2", "blocks/norm_mlp"),
        "h.{}.attn.c_attn.weight": tuple(f"blocks/attention/{name}" for name in QKV),
        "h.{}.attn.c_attn.bias": tuple(f"blocks/attention/{name}_bias" for name in QKV),
        **_both("h.{}.attn.c_proj", "blocks/attention/out"),
        **_both("h.{}.mlp.c_fc", "blocks/mlp/up"),
        **_both("h.{}.mlp.c_proj", "blocks/mlp/down"),
        **_norm("ln_f", "norm"),
        **HEAD,
        "h.{}.attn.bias": "",  # causal masks, which old files hold
        "h.{}.attn.masked_bias": "",
    },
    out_in=False,
    prefix="transformer.",
    bare=("lm_head",),
    ties={"lm_head.weight": "embed/tokens"},
    sizes=dict(
        vocab_size="vocab_size", n_positions="seq_len", n_embd="width", n_layer="depth", n_head="num_heads",
        n_inner="ffn", layer_norm_epsilon="norm_eps",
    ),
    choices={"activation_function": activation(("gelu_new", "gelu_tanh"), *GELUS), "tie_word_embeddings": TIED},
    only=dict(scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False, add_cross_attention=False),
    defaults=dict(
        n_inner=0, layer_norm_epsilon=1e-5, activation_function="gelu_new", tie_word_embeddings=True,
    ),
    extra=dict(architectures=["GPT2LMHeadModel"], model_type="gpt2"),
)  # fmt: skip

OPT = Layout(
    names={
        "decoder.embed_tokens.weight": "embed/tokens",
        "decoder.embed_positions.weight": "embed/positions",
        "decoder.project_in.weight": "embed/project_in",
        "decoder.project_out.weight": "embed/project_out",
        **_norm("decoder.layers.{}.self_attn_layer_norm", "blocks/norm_attention"),
        **_norm("decoder.layers.{}.final_layer_norm", "blocks/norm_mlp"),
        **{
            key: path
            for letter, name in zip("qkv", QKV, strict=True)
            for key, path in _both(f"decoder.layers.{{}}.self_attn.{letter}_proj", f"blocks/attention/{name}").items()
        },
        **_both("decoder.layers.{}.self_attn.out_proj", "blocks/attention/out"),
        **_both("decoder.layers.{}.fc1", "blocks/mlp/up"),
        **_both("decoder.layers.{}.fc2", "blocks/mlp/down"),
        **_norm("decoder.final_layer_norm", "norm"),
        **HEAD,
    },
    prefix="model.",
    bare=("lm_head",),
    ties={"lm_head.weight": "embed/tokens"},
    sizes=dict(
        vocab_size="vocab_size", max_position_embeddings="seq_len", hidden_size="width", num_hidden_layers="depth",
        num_attention_heads="num_heads", ffn_dim="ffn", word_embed_proj_dim="embed_dim",
    ),
    choices={
        "activation_function": activation(*GELUS),
        "tie_word_embeddings": TIED,
        "do_layer_norm_before": {
            True: {"norm_placement": "pre", "final_norm": True},
            False: {"norm_placement": "post", "final_norm": False},  # OPT-350M
        },
    },
    only=dict(enable_bias=True, layer_norm_elementwise_affine=True, _remove_final_layer_norm=False),
    defaults=dict(
        activation_function="relu", tie_word_embeddings=True, do_layer_norm_before=True, word_embed_proj_dim=0,
    ),
    always=dict(position_offset=2),
    extra=dict(architectures=["OPTForCausalLM"], model_type="opt"),
)  # fmt: skip

LLAMA = Layout(
    names={
        "embed_tokens.weight": "embed/tokens",
        "layers.{}.input_layernorm.weight": "blocks/norm_attention/scale",
        "layers.{}.post_attention_layernorm.weight": "blocks/norm_mlp/scale",
        **{
            f"layers.{{}}.self_attn.{letter}_proj.weight": f"blocks/attention/{name}"
            for letter, name in zip("qkvo", (*QKV, "out"), strict=True)
        },
        **{f"layers.{{}}.mlp.{name}_proj.weight": f"blocks/mlp/{name}" for name in ("gate", "up", "down")},
        "norm.weight": "norm/scale",
        **HEAD,
        "layers.{}.self_attn.rotary_emb.inv_freq": "",
    },
    prefix="model.",
    bare=("lm_head",),
    ties={"lm_head.weight": "embed/tokens"},
    sizes=dict(
        vocab_size="vocab_size", max_position_embeddings="seq_len", hidden_size="width", num_hidden_layers="depth",
        num_attention_heads="num_heads", num_key_value_heads="num_kv_heads", head_dim="head_dim",
        intermediate_size="ffn", rms_norm_eps="norm_eps", rope_theta="rope_base",
    ),
    choices={"hidden_act": activation(("silu", "swiglu"), ("gelu", "geglu")), "tie_word_embeddings": TIED},
    only=dict(attention_bias=False, mlp_bias=False, rope_type="default"),
    defaults=dict(
        num_key_value_heads=0, head_dim=0, rms_norm_eps=1e-6, rope_theta=10_000.0, tie_word_embeddings=False,
        hidden_act="silu",
    ),
    always=dict(position="rope", norm="rmsnorm", bias=False, attention_bias=False),
    extra=dict(architectures=["LlamaForCausalLM"], model_type="llama"),
)  # fmt: skip

# Pythia's block is wider: its attention and feed-forward layer read the same input, and a part of a head is rotated.
NEOX = Layout(
    names={
        "embed_in.weight": "embed/tokens",
        **_norm("layers.{}.input_layernorm", "blocks/norm_attention"),
        **_norm("layers.{}.post_attention_layernorm", "blocks/norm_mlp"),
        "layers.{}.attention.query_key_value.weight": tuple(f"blocks/attention/{name}" for name in QKV),
        "layers.{}.attention.query_key_value.bias": tuple(f"blocks/attention/{name}_bias" for name in QKV),
        **_both("layers.{}.attention.dense", "blocks/attention/out"),
        **_both("layers.{}.mlp.dense_h_to_4h", "blocks/mlp/up"),
        **_both("layers.{}.mlp.dense_4h_to_h", "blocks/mlp/down"),
        **_norm("final_layer_norm", "norm"),
        "embed_out.weight": "head",
        "lm_head.weight": "head",  # as transformers names it within, since version 5
        "layers.{}.attention.rotary_emb.inv_freq": "",
        "layers.{}.attention.bias": "",
        "layers.{}.attention.masked_bias": "",
    },
    by_head=True,
    prefix="gpt_neox.",
    bare=("embed_out",),
    ties={"embed_out.weight": "embed/tokens", "lm_head.weight": "embed/tokens"},
    sizes=dict(
        vocab_size="vocab_size", max_position_embeddings="seq_len", hidden_size="width", num_hidden_layers="depth",
        num_attention_heads="num_heads", intermediate_size="ffn", layer_norm_eps="norm_eps",
        rotary_emb_base="rope_base",
    ),
    choices={"hidden_act": activation(*GELUS), "tie_word_embeddings": TIED},
    only=dict(use_parallel_residual=False, rotary_pct=1.0, attention_bias=True, rope_type="default"),
    defaults=dict(
        use_parallel_residual=True, rotary_pct=0.25, layer_norm_eps=1e-5, rotary_emb_base=10_000.0, hidden_act="gelu",
        tie_word_embeddings=False,
    ),
    always=dict(position="rope"),
    extra=dict(architectures=["GPTNeoXForCausalLM"], model_type="gpt_neox"),
)  # fmt: skip

WEIGHTS = {"gpt2": GPT2, "opt": OPT, "llama": LLAMA, "gpt_neox": NEOX}
