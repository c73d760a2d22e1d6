"""The best of several configurations that were drawn at random: what one may expect of it, and how low the range goes.

The least of n losses falls with n, so rungs compare only at the same n, and a law through them is one of that n. All
functions take the final losses of n independent random configurations of one rung; a run that diverged has inf or nan.

Legend: n configurations, k of them, R resamples.
"""

from __future__ import annotations

import numpy as np
from scipy import special

from bigmodel.errors import UsageError


def ordered(losses: np.ndarray) -> np.ndarray:
    """The losses (n,), least first, diverged runs as inf at the end."""
    values = np.asarray(losses, dtype=np.float64)
    return np.sort(np.where(np.isnan(values), np.inf, values))


def expected_best(losses: np.ndarray, k: int) -> float:
    """Expected least loss of k random configurations, from n >= k that were tried; inf where runs diverged often.

        sum over i of C(n - i, k - 1) / C(n, k) x_i,   x_1 <= ... <= x_n:

    the mean over all choices of k of the n, which is unbiased (Tang et al. 2020, "Showing Your Work Doesn't Always
    Work", arXiv:2004.13705, section 3). Dodge et al. 2019 ("Show Your Work", arXiv:1909.03004, section 3.1) draw the k
    with replacement, which is biased towards worse values where k is near n.
    """
    x = ordered(losses)
    weight = _weights(len(x), k)
    return float(x[: len(weight)] @ weight)


def _weights(n: int, k: int) -> np.ndarray:
    """C(n - i, k - 1) / C(n, k) for i = 1 ... n - k + 1: how often the i-th of n is the least of k."""
    if not 1 <= k <= n:
        raise UsageError(f"best of {k}: {n} configurations were tried")
    i = np.arange(1, n - k + 1)
    return k / n * np.cumprod(np.append(1.0, (n - i - k + 1) / (n - i)))


def resampled(losses: np.ndarray, k: int, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """`expected_best` of resamples of the configurations, (R,). For k near n they can't go below what was seen."""
    x = ordered(losses)
    weight = _weights(len(x), k)
    return np.sort(rng.choice(x, (resamples, len(x))), axis=1)[:, : len(weight)] @ weight


def tail(n: int) -> int:
    """How many of the least losses `least` and `drawn` take the range's end from: the root of n, at least 2."""
    return max(2, round(n**0.5))


def _below(losses: np.ndarray, searched: int, share: np.ndarray) -> np.ndarray:
    """The least loss of the whole range, where the best configuration's share of the tail is `share`.

    Near an optimum inside the range the loss is quadratic in the `searched` hyperparameters, and the chance that a
    configuration is within e of the least grows as e^(searched / 2) (de Haan 1981, "Estimation of the minimum of a
    function using order statistics", JASA 76:374). So (x_1 - x) / (x_m - x) = share^(2 / searched).
    """
    x = ordered(losses)
    if searched < 1 or len(x) < 3 or not np.isfinite(x[tail(len(x)) - 1]):
        raise UsageError(f"least loss of a range: {np.isfinite(x).sum()} finite losses, {searched} hyperparameters")
    part = share ** (2 / searched)
    return x[0] - (x[tail(len(x)) - 1] - x[0]) * part / (1 - part)


def least(losses: np.ndarray, searched: int, level: float = 0.95) -> tuple[float, float]:
    """(low, best): an interval of the least loss that the whole range has, `best` being the least of those tried.

    The best configuration's share of the tail below x_m is Beta(1, m - 1), as the least of m - 1 uniform numbers is.
    One-sided: but for the luck of its seed, no configuration is better than the range's best.
    """
    share = special.betaincinv(1, tail(len(losses)) - 1, level)
    return float(_below(losses, searched, share)), float(ordered(losses)[0])


def drawn(losses: np.ndarray, searched: int, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """Least losses of the whole range, (R,), as far as these losses tell: `least` with the share drawn at random."""
    return _below(losses, searched, rng.beta(1, tail(len(losses)) - 1, resamples))
