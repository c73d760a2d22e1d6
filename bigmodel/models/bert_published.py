"""Published BERTs, and where their parameters are found in checkpoints: `bert.PUBLISHED`, `bert.WEIGHTS`."""

from __future__ import annotations

from typing import Any

from bigmodel.models.layouts import GELUS, Layout, activation

DEVLIN = "Devlin et al. 2019, arXiv:1810.04805, section 3; vocabularies: github.com/google-research/bert"
TURC = "Turc et al. 2019, arXiv:1908.08962, Table 1; github.com/google-research/bert"
MARKS = dict(cls_token=101, sep_token=102, mask_token=103)


def _row(depth: int, width: int, source: str, vocab_size: int = 30522, **more: Any) -> dict[str, Any]:
    """Heads of 64; with the masked and the next-sentence head, as pretrained."""
    shape = dict(depth=depth, width=width, num_heads=width // 64, vocab_size=vocab_size, seq_len=512)
    return dict(source=source, model=dict(**shape, **MARKS, objective="masked_next"), **more)


def _turc() -> dict[str, dict[str, Any]]:
    names = {(2, 128): "tiny", (4, 256): "mini", (4, 512): "small", (8, 512): "medium"}
    printed = {"tiny": "4.4M", "mini": "11.3M", "small": "29.1M", "medium": "41.7M"}
    rows = {}
    for depth in (2, 4, 6, 8, 10, 12):
        for width in (128, 256, 512, 768):
            name = names.get((depth, width), f"l{depth}-h{width}")
            rows[f"bert-{name}"] = _row(depth, width, TURC)
            if name in printed:
                rows[f"bert-{name}"]["printed"] = printed[name]
    return rows


ROWS: dict[str, dict[str, Any]] = {
    "bert-base-uncased": _row(12, 768, DEVLIN, params=110_106_428),
    "bert-large-uncased": _row(24, 1024, DEVLIN, params=336_226_108),
    # The cased marks have the same ids; the paper prints 110M and 340M for both vocabularies.
    "bert-base-cased": _row(12, 768, DEVLIN, vocab_size=28996),
    "bert-large-cased": _row(24, 1024, DEVLIN, vocab_size=28996),
    **_turc(),
}

NAMES: dict[str, str] = {
    "embeddings.word_embeddings.weight": "embed/tokens",
    "embeddings.position_embeddings.weight": "embed/positions",
    "embeddings.token_type_embeddings.weight": "embed/segments",
    "embeddings.LayerNorm.weight": "embed/norm/scale",
    "embeddings.LayerNorm.bias": "embed/norm/bias",
    **{
        f"encoder.layer.{{}}.attention.self.{name}.{kind}": f"blocks/attention/{name}{'_bias' * (kind == 'bias')}"
        for name in ("query", "key", "value")
        for kind in ("weight", "bias")
    },
    "encoder.layer.{}.attention.output.dense.weight": "blocks/attention/out",
    "encoder.layer.{}.attention.output.dense.bias": "blocks/attention/out_bias",
    "encoder.layer.{}.attention.output.LayerNorm.weight": "blocks/norm_attention/scale",
    "encoder.layer.{}.attention.output.LayerNorm.bias": "blocks/norm_attention/bias",
    "encoder.layer.{}.intermediate.dense.weight": "blocks/mlp/up",
    "encoder.layer.{}.intermediate.dense.bias": "blocks/mlp/up_bias",
    "encoder.layer.{}.output.dense.weight": "blocks/mlp/down",
    "encoder.layer.{}.output.dense.bias": "blocks/mlp/down_bias",
    "encoder.layer.{}.output.LayerNorm.weight": "blocks/norm_mlp/scale",
    "encoder.layer.{}.output.LayerNorm.bias": "blocks/norm_mlp/bias",
    "pooler.dense.weight": "pooler/kernel",
    "pooler.dense.bias": "pooler/bias",
    "cls.predictions.transform.dense.weight": "transform/kernel",
    "cls.predictions.transform.dense.bias": "transform/bias",
    "cls.predictions.transform.LayerNorm.weight": "transform/norm/scale",
    "cls.predictions.transform.LayerNorm.bias": "transform/norm/bias",
    "cls.predictions.bias": "output_bias",
    "cls.seq_relationship.weight": "next",
    "cls.seq_relationship.bias": "next_bias",
    "classifier.weight": "head",
    "classifier.bias": "head_bias",
    "embeddings.position_ids": "",
}


def _pooled(objective: str) -> dict[str, Any]:
    return {"objective": objective, "pool": "cls", "pooler": True}


WEIGHTS = {
    "bert": Layout(
        names=NAMES,
        prefix="bert.",
        bare=("cls.", "classifier."),
        ties={"cls.predictions.decoder.weight": "embed/tokens", "cls.predictions.decoder.bias": "output_bias"},
        sizes=dict(
            vocab_size="vocab_size", max_position_embeddings="seq_len", type_vocab_size="segments", hidden_size="width",
            num_hidden_layers="depth", num_attention_heads="num_heads", intermediate_size="ffn",
            layer_norm_eps="norm_eps", num_labels="num_classes", cls_token_id="cls_token", sep_token_id="sep_token",
            mask_token_id="mask_token",
        ),
        choices={
            "hidden_act": activation(*GELUS),
            "architectures": {
                "BertForPreTraining": _pooled("masked_next"),
                "BertForSequenceClassification": _pooled("classify"),
                "BertForTokenClassification": {"objective": "tag"},
                "BertForMaskedLM": {"objective": "masked"},
            },
        },
        only=dict(is_decoder=False, add_cross_attention=False, position_embedding_type="absolute",
                  problem_type="single_label_classification"),
        defaults=dict(layer_norm_eps=1e-12, hidden_act="gelu", num_labels=2)
        | {f"{name}_id": mark for name, mark in MARKS.items()},  # of every published vocabulary
        extra=dict(model_type="bert"),
    )
}  # fmt: skip
