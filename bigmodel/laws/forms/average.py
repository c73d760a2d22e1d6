"""A weighted average of laws of the same target."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from bigmodel.errors import UsageError
from bigmodel.laws import forms
from bigmodel.laws.forms import Law, Parameter, Row


def average(members: str = "gadre+chinchilla") -> Law:
    """ln L = sum over m of w_m ln L_m, the laws of `members` with weights w; each is fitted by itself.

    The estimate weighs all alike: estimated weights seldom do better out of sample (Stock & Watson 2004, Journal of
    Forecasting 23:6). In a resample one member, drawn by its weight, has all of the weight, so that intervals hold the
    disagreement of the laws as well as the uncertainty of each (Buckland et al. 1997, Biometrics 53:2).
    """
    laws = [forms.get(name) for name in members.split("+") if name]
    if len(laws) < 2 or len({law.target for law in laws}) > 1 or any(law.members or law.linear for law in laws):
        raise UsageError(f"average:members={members}: expected two or more laws of one target, as gadre+chinchilla")
    share = 1 / len(laws)
    parameters = [Parameter(f"w_{law.name}", (share,), 0.0, 1.0) for law in laws]
    parameters += [replace(p, name=f"{law.name}.{p.name}", role="") for law in laws for p in law.parameters]

    def form(theta: np.ndarray, row: Row) -> np.ndarray:
        total, at = np.zeros(()), len(laws)
        for weight, law in zip(theta[: len(laws)], laws, strict=True):
            value = law.form(theta[at : at + len(law.parameters)], row)
            # A member of no weight may be anything, infinite included.
            total = total + np.where(weight > 0, weight * np.where(weight > 0, value, 0.0), 0.0)
            at += len(law.parameters)
        return total

    return Law(
        " ".join(f"[{law.name}]^{{w_{law.name}}}" for law in laws),
        "; ".join(law.source for law in laws),
        tuple(dict.fromkeys(column for law in laws for column in law.columns)),
        tuple(parameters),
        form,
        target=laws[0].target,
        members=tuple(laws),
    )
