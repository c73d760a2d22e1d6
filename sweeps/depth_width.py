"""Depth against width at fixed size and compute: seven shapes of 55 to 58 thousand parameters, from one layer to 72.

    bigmodel prepare prose --out=data/prose-bytes
    bigmodel sweep run sweeps/depth_width.py && bigmodel report sweeps/depth_width.py

Every shape has two heads; docs/results.md has what came out.
"""

from pathlib import Path

from bigmodel import sweep
from bigmodel.laws import rows
from bigmodel.laws.figures import style, transfer

CONFIG = "experiments/prose.py"
LAW = None  # one size, one budget
SHAPES = [(68, 1), (48, 2), (40, 3), (24, 8), (16, 18), (12, 32), (8, 72)]  # 12 width^2 depth = 55 to 58 thousand


def get_sweep():
    shapes = [row for width, depth in SHAPES for row in sweep.ladder("decoder", [width], [depth])]
    heads = [{**row, "model.num_heads": 2} for row in shapes]  # of an even size each, as RoPE needs
    return sweep.product(heads, {"train.flops": [1e12], "optim.warmup": [0.1]})


def figure(frame):
    """Loss against width / depth, with the number of layers at each mark."""
    fig, (axes,) = style.PAGE.panels(1)
    mean = frame.groupby(["aspect", "depth"], as_index=False)["L"].mean()
    axes.plot(mean.aspect, mean["L"], color=style.BLUE, marker="o")
    for row in mean.itertuples():
        axes.annotate(f"{row.depth}", (row.aspect, row.L), textcoords="offset points", xytext=(4, 5), fontsize="small")
    style.log_axis(axes, "x", mean.aspect.min() / 1.5, mean.aspect.max() * 1.5)
    axes.set(xlabel="width / depth (marks: layers)", ylabel="held-out loss")
    return fig


def report(folder, out):
    """Writes shapes.csv and shapes.png, .svg, .pdf; returns lines of text, from the deepest to the widest."""
    frame = rows.load(folder)
    frame = frame.assign(aspect=frame["width"] / frame["depth"]).sort_values("aspect")
    home = Path(out)
    home.mkdir(parents=True, exist_ok=True)
    frame[["width", "depth", "aspect", "N", "D", "C", "L", "seed"]].to_csv(home / "shapes.csv", index=False)
    drawn = transfer.write(figure, home / "shapes", frame)
    least = frame["L"].min()
    lines = [
        f"width {r.width} depth {r.depth}: width / depth {r.aspect:.3g}, N {r.N:,.0f}, loss {r.L:.4f} "
        f"({r.L / least - 1:+.2%})"
        for r in frame.itertuples()
    ]
    return "\n".join([*lines, f"figure: {drawn}"])
