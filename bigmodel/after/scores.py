"""Scores of predictions against references: classification, translation, and a dictionary to compare with."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd

WORD = re.compile(r"[\u4e00-\u9fff]|[^\W\u4e00-\u9fff]+")  # a word, or a Chinese character


def classification(log_p_NC: np.ndarray, labels_N: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    """What scikit-learn's functions of these names say of the predictions, and their `calibration`.

    Accuracy; precision, recall and F1 of each class, and their micro, macro and weighted means; the confusion matrix
    (row: true); the Brier score (of two classes the half of the sum over both); the mean negative log-likelihood in
    nats (not clipped); and of two classes the area under the ROC curve, None where one of them has no example.

    Args:
      log_p_NC: log-probabilities; the likeliest class is the prediction.
    """
    from sklearn import metrics

    known, predicted, p_NC = list(range(len(names))), np.argmax(log_p_NC, axis=1), np.exp(log_p_NC)
    keys = ("precision", "recall", "f1")
    given = {"labels": known, "zero_division": 0.0}
    columns = metrics.precision_recall_fscore_support(labels_N, predicted, **given)
    found = {
        "examples": len(labels_N),
        "accuracy": float(np.mean(predicted == labels_N)),
        "classes": pd.DataFrame(dict(zip((*keys, "examples"), columns, strict=True)), index=list(names)).to_dict(
            "index"
        ),
        "confusion": metrics.confusion_matrix(labels_N, predicted, labels=known).tolist(),
        "negative_log_likelihood": -float(np.mean(log_p_NC[np.arange(len(labels_N)), labels_N])),
        "brier": float(metrics.brier_score_loss(labels_N, p_NC, labels=known)),
        **calibration(p_NC.max(axis=1), predicted == labels_N),
    }
    for average in ("micro", "macro", "weighted"):
        means = metrics.precision_recall_fscore_support(labels_N, predicted, average=average, **given)
        found |= {f"{average}_{key}": float(mean) for key, mean in zip(keys, means, strict=False)}
    if len(names) == 2:
        both = len(np.unique(labels_N)) == 2
        found["auroc"] = float(metrics.roc_auc_score(labels_N, p_NC[:, 1])) if both else None
    return found


def calibration(confidence_N: np.ndarray, correct_N: np.ndarray, bins: int = 15) -> dict[str, Any]:
    """The expected calibration error, and the bins of equal width that it is a mean over; empty ones are left out.

    The mean of |accuracy - confidence| of the bins, by their examples; a bin holds the confidences in (low, high]
    (Guo et al. 2017, arXiv:1706.04599, equation 3).
    """
    edges = np.linspace(0, 1, bins + 1)
    frame = pd.DataFrame({"confidence": confidence_N, "accuracy": correct_N.astype(float)})
    by_bin = frame.groupby(np.searchsorted(edges[1:-1], confidence_N))
    table = by_bin.mean().assign(examples=by_bin.size())
    table = table.assign(low=edges[table.index], high=edges[table.index + 1])
    error = np.average((table["accuracy"] - table["confidence"]).abs(), weights=table["examples"])
    return {"expected_calibration_error": float(error), "reliability": table.to_dict("records")}


def agreement(translations: Sequence[str], references: Sequence[str]) -> dict[str, Any]:
    """Corpus BLEU and chrF by sacreBLEU (Post 2018, arXiv:1804.08771), and their signatures.

    Chinese references are compared by characters.
    """
    import sacrebleu

    chinese = sum("\u4e00" <= c <= "\u9fff" for text in references for c in text)
    bleu = sacrebleu.metrics.BLEU(tokenize="zh" if chinese > 0.2 * sum(map(len, references)) else "13a")
    chrf = sacrebleu.metrics.CHRF()
    found = bleu.corpus_score(translations, [references])
    return {
        "bleu": float(found.score),
        "chrf": float(chrf.corpus_score(translations, [references]).score),
        "brevity_penalty": float(found.bp),
        "signatures": [str(bleu.get_signature()), str(chrf.get_signature())],
    }


def dictionary(pairs: Sequence[tuple[str, str]], rounds: int = 5) -> Callable[[str], str]:
    """A baseline translator: replaces each word by its likeliest translation, and copies unknown words.

    The dictionary is IBM's model 1, with its empty word, trained on `pairs` by `rounds` of expectation maximisation
    (Brown et al. 1993, Computational Linguistics 19.2, section 4.2).
    """
    ours: dict[str, int] = {"": 0}
    theirs: dict[str, int] = {}
    links, spots = [], []  # per link in a sentence: (source word, target word), and the position of the target word
    at = 0
    for source, target in pairs:
        a = [0, *(ours.setdefault(w.lower(), len(ours)) for w in WORD.findall(source))]
        b = np.array([theirs.setdefault(w, len(theirs)) for w in WORD.findall(target)], int)
        links.append(np.stack([np.repeat(a, len(b)), np.tile(b, len(a))]))
        spots.append(at + np.tile(np.arange(len(b)), len(a)))
        at += len(b)
    (i, j), spot = np.concatenate(links, axis=1), np.concatenate(spots)
    known, link = np.unique(i * len(theirs) + j, return_inverse=True)
    source_of, target_of = np.divmod(known, len(theirs))
    p = np.ones(len(known))  # probability of the target word, given the source word
    for _ in range(rounds):
        share = p[link] / np.bincount(spot, p[link], at)[spot]
        counts = np.bincount(link, share)
        p = counts / np.bincount(source_of, counts)[source_of]
    best = np.zeros(len(ours), int)
    rising = np.argsort(p, kind="stable")
    best[source_of[rising]] = target_of[rising]  # the last assignment is the likeliest
    words, linked = list(theirs), set(source_of.tolist())

    def translate(text: str) -> str:
        def one(match: re.Match[str]) -> str:
            k = ours.get(match[0].lower(), 0)
            if k == 0 or k not in linked:
                return match[0]
            found = words[best[k]]
            return found[:1].upper() + found[1:] if match[0][:1].isupper() else found

        return WORD.sub(one, text)

    return translate
