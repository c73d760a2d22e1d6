"""Figure of a program compiled for a pod: memory per chip, communication per step, and the roofline of the step."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure

from bigmodel.laws.figures import style

GIB = 2**30


def program(report: dict[str, Any]) -> Figure:
    """Of one report of `bigmodel compile`: the bytes of a chip, collectives by kind and axis, and the roofline's four
    times."""
    figure, (memory, sent, times) = style.PAGE.panels(3, height=2.6)
    arguments, temporaries = report["bytes"]["arguments"] / GIB, report["bytes"]["temporaries"] / GIB
    memory.bar(0, arguments, color=style.CYCLE[0], label=f"State and batch {arguments:.1f}", width=0.5)
    memory.bar(0, temporaries, 0.5, arguments, color=style.CYCLE[1], label=f"Temporaries {temporaries:.1f}")
    # Less than the sum: temporaries are not all live at once, nor is the state throughout.
    peak, hbm = report["bytes"]["peak"] / GIB, report["hbm_bytes"] / GIB
    memory.hlines(peak, -0.35, 0.35, color="black", linewidth=2, label=f"Peak {peak:.1f}")
    memory.axhline(hbm, color="black", linewidth=1, linestyle="--", label=f"HBM {hbm:.0f}")
    memory.set(xlim=(-0.6, 0.6), xticks=[], ylabel="GiB per chip", title="Memory")
    memory.set_ylim(0, 1.7 * max(arguments + temporaries, hbm))  # room for the legend
    memory.legend(loc="upper left")
    rows = report["collectives"][:6][::-1]
    names = [f"{row['kind']}\n{row['axis']}, {row['network']}" for row in rows]
    sent.barh(names, [row["bytes"] / 1e9 for row in rows], color=style.CYCLE[2])
    sent.set(xlabel="GB sent per chip and step", title="Collectives")
    sent.tick_params(axis="y", labelsize=6)
    seconds = [report["roofline"][key] for key in ("compute", "hbm", "ici", "dcn")]
    bars = times.bar(["Compute", "HBM", "ICI", "DCN"], seconds, color=style.CYCLE[0])
    times.bar_label(bars, [f"{s:.3g}" for s in seconds], fontsize=7)
    times.set(ylabel="Seconds per step at peak rates", title="Roofline (model)", ylim=(0, max(seconds) * 1.15))
    return figure
