"""Captions found for pictures and pictures for captions, and classes told by prompts, of a run that embeds both.

P pictures, T captions, Q queries, N candidates, C classes, E joint width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bigmodel import data
from bigmodel.after import evaluate, slices
from bigmodel.data import captions
from bigmodel.errors import UsageError

AT = (1, 5, 10)  # candidates looked at
SHOWN = 8  # captions, and pictures found for each


def scores(run: Any, split: str, encoder: Any, limit: int = 0, prompts: Sequence[str] = ()) -> dict[str, Any]:
    """What `bigmodel evaluate` says of a split's first `limit` pairs (0: of all).

    Returns:
      `retrieval`: by language, and for `all` of several, each way ("captions of a picture", "pictures of a caption")
        the queries, the candidates, recall at AT with the chance of a random order, and an interval of the middle one.
        A caption that is also one of another picture is right for both.
      `zero_shot`: by language, accuracy, the mean of the classes' recalls (`balanced`), the share of the largest class,
        the confusion matrix (rows: true class) and the names; without pictures that have no label.
      `found`: of some captions the pictures' numbers in the order in which they are found, and the captions.
    """
    examples = run.examples(split)
    manifest = data.manifest(run.config.data, run.config.run.data_dir, "captions")

    def both(variables: Any, batch: Any) -> jax.Array:
        return jnp.stack(run.model.apply(variables, *run.family.inputs(run.config.model, batch)), axis=1)

    made = [x for _, x in evaluate.outputs(run, both, examples, evaluate.BATCH, limit)]
    pairs_T2E = np.concatenate(made)
    T = len(pairs_T2E)
    numbers, first = np.unique(examples.picture[:T], return_index=True)
    image_PE, text_TE = pairs_T2E[first, 0], pairs_T2E[:, 1]
    told = [row["caption"] for row in evaluate.texts(run, split)][:T]
    same = np.unique(told, return_inverse=True)[1]
    own_PT = numbers[:, None] == examples.picture[:T]
    right_PT = np.zeros_like(own_PT)
    for text in range(same.max() + 1):
        right_PT[:, same == text] = own_PT[:, same == text].any(axis=1, keepdims=True)
    cosine_PT = image_PE @ text_TE.T
    groups = {name: examples.language[:T] == i for i, name in enumerate(manifest["languages"])}
    groups = {name or "captions": mask for name, mask in groups.items() if mask.any()}
    if len(groups) > 1:
        groups["all"] = np.ones(T, bool)
    retrieval = {}
    for name, mask_T in groups.items():
        asked_P = own_PT[:, mask_T].any(axis=1)
        score, right = cosine_PT[asked_P][:, mask_T], right_PT[asked_P][:, mask_T]
        retrieval[name] = {
            "captions of a picture": recall(score, right),
            "pictures of a caption": recall(score.T, right.T),
        }
    order_NP = np.argsort(-cosine_PT, axis=0)
    latin = [t for t in range(T) if told[t].isascii()] or list(range(T))  # which a figure's font has
    shown = [latin[k] for k in np.unique(np.linspace(0, len(latin) - 1, min(len(latin), SHOWN)).astype(int))]
    found = [{"caption": told[t], "first_pair": [int(first[p]) for p in order_NP[:SHOWN, t]],
              "right": [bool(right_PT[p, t]) for p in order_NP[:SHOWN, t]]} for t in shown]  # fmt: skip
    labels_P = examples.label[:T][first]
    labels = manifest["labels"]
    zero_shot = {
        language: classes(run, encoder, image_PE, labels_P, labels, asked, prompts or ("{}",))
        for language, asked in manifest["asked"].items() if sum(map(bool, labels)) > 1
    }  # fmt: skip
    return {"retrieval": retrieval, "zero_shot": zero_shot, "found": found}


def recall(score_QN: np.ndarray, right_QN: np.ndarray) -> dict[str, Any]:
    """The share of queries with a right one among the first k candidates; candidates of equal score count as before."""
    Q, N = score_QN.shape
    best_Q = np.where(right_QN, score_QN, -np.inf).max(axis=1, keepdims=True)
    before_Q = np.sum((score_QN >= best_Q) & ~right_QN, axis=1)
    rights_Q = right_QN.sum(axis=1)
    found: dict[str, Any] = {"queries": Q, "candidates": N}
    for k in AT:
        found[f"r{k}"] = float(np.mean(before_Q < k))
        misses_Q = np.prod([np.maximum(0, N - rights_Q - i) / max(1, N - i) for i in range(min(k, N))], axis=0)
        found[f"chance_r{k}"] = float(1 - np.mean(misses_Q))
    found[f"r{AT[1]}_interval"] = slices.wilson(int(np.sum(before_Q < AT[1])), Q)
    return found


def classes(
    run: Any,
    encoder: Any,
    image_PE: np.ndarray,
    labels_P: np.ndarray,
    names: Sequence[str],
    asked: Sequence[str],
    prompts: Sequence[str],
) -> dict[str, Any]:
    """Pictures told apart by the mean vector of each class's prompts (Radford et al. 2021, section 3.1.4).

    Args:
      asked: what stands for a class in a prompt; "": the class is left out.
    """
    if wrong := [prompt for prompt in prompts if "{}" not in prompt]:
        raise UsageError(f"--prompt={wrong[0]!r}: needs {{}}, where the class stands")
    size, end = run.config.model.seq_len, encoder.separator
    kept = [k for k, text in enumerate(asked) if text and (labels_P == k).any()]
    texts = [prompt.replace("{}", asked[k].lower()) for k in kept for prompt in prompts]
    rows = [captions.row([*encoder.encode(encoder.clean(text)), end], size, end) for text in texts]
    tokens, length = (np.stack(column) for column in zip(*rows, strict=True))
    text_TE = np.asarray(run.model.apply(run.variables, tokens, length, method="captions"))
    class_CE = text_TE.reshape(len(kept), len(prompts), -1).mean(axis=1)
    class_CE /= np.linalg.norm(class_CE, axis=1, keepdims=True)
    there_P = np.isin(labels_P, kept)
    said = np.asarray(kept)[np.argmax(image_PE[there_P] @ class_CE.T, axis=1)]
    true = labels_P[there_P]
    confusion = [[int(np.sum((true == a) & (said == b))) for b in kept] for a in kept]
    counts = np.array([sum(row) for row in confusion])
    return {
        "pictures": len(true),
        "left_out": int(np.sum(~there_P)),
        "accuracy": float(np.mean(said == true)),
        "accuracy_interval": slices.wilson(int(np.sum(said == true)), len(true)),
        "balanced": float(np.mean(np.diagonal(confusion) / counts)),
        "balanced_chance": 1 / len(kept),
        "largest_class": float(counts.max() / counts.sum()),
        "prompts": list(prompts),
        "classes": [names[k] for k in kept],
        "confusion": confusion,
    }
