"""Bits per byte of character n-gram models on prepared text: what a language model of ours has to beat.

    python benchmarks/character_ngrams.py data/prose-zh-bpe --order=6

Interpolated modified Kneser-Ney (Chen and Goodman 1999, Computer Speech and Language 13, equations 24-26), counted on
the train split, whose documents are one stream with a mark after each; the last resort is 1/65,536 a character. All
validation documents count, each with its mark, and the bytes are the text's alone, as in `bits_per_byte` of a run.
"""

import argparse
import json
import math
from pathlib import Path

import numpy as np

from bigmodel.prepare import tokenizer

LAST_RESORT = 2.0**-16


def stream(folder: Path, split: str) -> str:
    """All documents of a split, each followed by NUL."""
    made = tokenizer.load(folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    parts = []
    for shard in manifest["splits"][split]["shards"]:
        tokens = np.fromfile(folder / shard["file"], manifest["dtype"])
        ends = np.flatnonzero(tokens == made.separator)
        parts += [made.decode(ids) + "\0" for ids in np.split(tokens, ends + 1)[:-1]]
    return "".join(parts)


def discounts(counts: np.ndarray) -> np.ndarray:
    """D(c) of each count: three constants, for 1, 2, and 3 or more."""
    n1, n2, n3, n4 = (max(1, int((counts == k).sum())) for k in (1, 2, 3, 4))
    y = n1 / (n1 + 2 * n2)
    constants = np.array([0, 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3])
    return constants[np.minimum(counts, 3)]


def probabilities(train: str, other: str, order: int) -> np.ndarray:
    """p(character | the order - 1 before it) of each character of `other`."""
    letters = {c: i for i, c in enumerate(sorted(set(train)))}
    V = len(letters) + 1  # the last stands for all that were never seen
    x, y = (np.array([letters.get(c, V - 1) for c in text]) for text in (train, other))
    # Of each k: the distinct k-grams as (index of their first k - 1 characters) * V + the last one, and, of each place
    # of both texts, the index of the k-gram that ends there (-1: none).
    x_grams, y_grams = [np.zeros(len(x), int)], [np.zeros(len(y), int)]
    distinct, counts, suffixes = [np.zeros(1, int)], [np.zeros(0, int)], [np.zeros(1, int)]
    for k in range(1, order + 1):
        before = np.append(0 if k == 1 else -1, x_grams[-1][:-1])
        keys, places, inverse, count = np.unique(
            np.where(before < 0, -1, before * V + x), return_index=True, return_inverse=True, return_counts=True
        )
        start = int(keys[0] == -1)  # the places before the k-th character
        distinct.append(keys[start:])
        counts.append(count[start:])
        suffixes.append(x_grams[-1][places[start:]])
        x_grams.append(inverse - start)
        before = np.append(0 if k == 1 else -1, y_grams[-1][:-1])
        at = np.searchsorted(distinct[k], before * V + y).clip(max=len(distinct[k]) - 1)
        y_grams.append(np.where((before >= 0) & (distinct[k][at] == before * V + y), at, -1))
    p = np.full(len(y), LAST_RESORT)
    for k in range(1, order + 1):
        c = counts[k] if k == order else np.bincount(suffixes[k + 1], minlength=len(distinct[k]))
        D, context = discounts(c), distinct[k] // V
        total, left = (np.bincount(context, weights=w, minlength=len(distinct[k - 1])) for w in (c, D))
        before = np.append(0 if k == 1 else -1, y_grams[k - 1][:-1])
        known = (before >= 0) & (total[before] > 0)
        seen = np.where(y_grams[k] >= 0, (c - D)[y_grams[k]], 0.0)
        p = np.where(known, (seen + left[before] * p) / np.where(known, total[before], 1), p)
    return p


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="made by `bigmodel prepare`")
    parser.add_argument("--order", type=int, default=6, help="the longest n-gram")
    args = parser.parse_args()
    train, held_out = stream(args.folder, "train"), stream(args.folder, "validation")
    text = held_out.replace("\0", "")
    print(f"{len(train):,} characters; validation {len(text):,}, {len(text.encode()):,} bytes")
    for order in range(1, args.order + 1):
        bits = -np.log2(probabilities(train, held_out, order)).sum()
        row = f"{bits / len(text.encode()):.4f} bits per byte, {bits / len(text):.4f} per character"
        print(f"{order}-grams: {row}, {bits * math.log(2) / len(held_out):.4f} nats", flush=True)


if __name__ == "__main__":
    main()
