"""Figures of a program compiled for a pod: what fills a chip, what it sends, what bounds its step."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure

from bigmodel.laws.figures import style

G = 2**30


def program(r: dict[str, Any]) -> Figure:
    """Of one report of `bigmodel compile`: bytes a chip against its memory, collectives by kind and axis, and the
    roofline's four times."""
    figure, (memory, sent, times) = style.PAGE.panels(3, height=2.6)
    left = 0.0
    for i, (name, key) in enumerate((("state and batch", "arguments"), ("temporaries", "temporaries"))):
        size = r["bytes"][key] / G
        memory.bar(0, size, bottom=left, color=style.CYCLE[i], label=f"{name} {size:.1f}", width=0.5)
        left += size
    peak = r["bytes"]["peak"] / G  # less than their sum: not all temporaries live at once, nor the state throughout
    memory.hlines(peak, -0.35, 0.35, color="black", linewidth=2, label=f"peak {peak:.1f}")
    memory.axhline(
        r["hbm_bytes"] / G, color="black", linewidth=1, linestyle="--", label=f"HBM {r['hbm_bytes'] / G:.0f}"
    )
    memory.set(
        xlim=(-0.6, 0.6),
        xticks=[],
        ylabel="GiB of a chip",
        title="memory",
        ylim=(0, max(left, r["hbm_bytes"] / G) * 1.7),
    )
    memory.legend(loc="upper left", frameon=False)
    rows = r["collectives"][:6][::-1]
    sent.barh([f"{x['kind']}\n{x['axis']}" for x in rows], [x["bytes"] / 1e9 for x in rows],
              color=[style.CYCLE[2 if x["network"] == "ICI" else 3] for x in rows])  # fmt: skip
    sent.set(xlabel="GB a chip sends in a step", title="collectives")
    sent.tick_params(axis="y", labelsize=6)
    names = {"compute": "compute", "hbm": "HBM", "ici": "ICI", "dcn": "DCN"}
    seconds = [r["roofline"][key] for key in names]
    bars = times.bar(list(names.values()), seconds, color=style.CYCLE[0])
    times.bar_label(bars, [f"{s:.3g}" for s in seconds], fontsize=7)
    times.set(ylabel="s a step, at published peaks", title="roofline (a model)", ylim=(0, max(seconds) * 1.15))
    return figure
