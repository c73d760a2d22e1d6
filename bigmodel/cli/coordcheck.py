"""Check that hyper-parameters transfer across width or depth.

Trains every width (or depth) for a few steps, and measures how the size of activations and of their change grows with
it. Where hyper-parameters transfer, the slopes are 0 within 0.1. The smallest width or depth is the base. Writes a
table, slopes.json and a figure. Exit code 1: the last parametrization does not pass.

Examples:
  bigmodel coordcheck --config=experiments/prose.py --widths=32,64,128,256
  bigmodel coordcheck --config=experiments/prose.py --depths=2,4,8 --parametrization=mup,completep --out=runs/depth
"""

import json
from pathlib import Path

from bigmodel import cli, config, files
from bigmodel.errors import UsageError

CONFIGURED = True


def arguments(parser: cli.Parser) -> None:
    parser.add_argument("--config", metavar="FILE[:VARIANT]", required=True, help="a file with get_config()")
    parser.add_argument("--widths", default="", metavar="W,W,...", help="widths to compare")
    parser.add_argument("--depths", default="", metavar="N,N,...", help="or depths to compare")
    parser.add_argument("--parametrization", default="standard,mup", metavar="NAME,...", help="parametrizations")
    parser.add_argument("--steps", type=int, default=8, help="steps of each run")
    parser.add_argument("--seeds", type=int, default=2, help="runs of each size")
    parser.add_argument("--out", default="runs/coordcheck", metavar="FOLDER", help="folder to write")
    cli.device_arguments(parser)


def run(args: cli.Args, overrides: cli.Overrides) -> int:
    if bool(args.widths) == bool(args.depths):
        raise UsageError("coordcheck: give --widths=W,W,... or --depths=N,N,...")
    axis, text = ("width", args.widths) if args.widths else ("depth", args.depths)
    try:
        sizes = [int(part) for part in text.split(",")]
    except ValueError as e:
        raise UsageError(f"--{axis}s={text}: expected whole numbers separated by commas") from e
    unfrozen = config.load(args.config, overrides)
    cli.start_jax(args)
    import pandas as pd

    from bigmodel.after import coordcheck
    from bigmodel.laws.figures import transfer

    def say(line: str) -> None:
        if not args.json:
            print(line, flush=True)

    names = args.parametrization.split(",")
    rows = coordcheck.measure(unfrozen, axis, sizes, names, args.steps, args.seeds, say)
    slopes = coordcheck.slopes(rows)
    out = Path(args.out)
    with files.writing(out):
        out.mkdir(parents=True, exist_ok=True)
        pd.DataFrame(rows).to_csv(out / "coords.csv", index=False)
        (out / "slopes.json").write_text(json.dumps(slopes, indent=1) + "\n")
        figure = transfer.write(transfer.coordinates, out / "coords", rows)
    if args.json:
        cli.print_json(slopes)
    else:
        head = ["parametrization", "module", f"slope of rms in {axis}", "slope of change", "ok"]
        body = []
        for s in slopes:
            values = (f"{s['rms']:+.3f}", f"{s['change']:+.3f}", "yes" if s["ok"] else "NO")
            body.append([s["parametrization"], s["module"], *values])
        print(cli.table(head, body))
        print(f"figure: {figure}")
    return 0 if all(s["ok"] for s in slopes if s["parametrization"] == names[-1]) else 1
