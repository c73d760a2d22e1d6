"""Train one model from a config file.

The run is stored in RUNS/<run id>/; the id is a hash of the config. An interrupted run continues from its last
checkpoint; for a finished run, the stored result is printed. --config.SECTION.KEY=VALUE sets any option of the config.
Writes config.json, metrics.jsonl, checkpoints/ and result.json.

Examples:
  bigmodel train --config=experiments/digits.py --config.model.width=128 --config.optim.lr=0.001
  bigmodel train runs/0123456789ab/config.json    # continues that run in its own folder
"""

from bigmodel import cli, config
from bigmodel.errors import UsageError

CONFIGURED, CLOUD = True, ("path", "runs")


def arguments(parser: cli.Parser) -> None:
    cli.config_arguments(parser)
    parser.add_argument("--runs", help="folder of runs, local or gs:// (default: runs; of a config.json, its own)")
    parser.add_argument("--name", default="", help="name shown by W&B and the progress line")
    cli.device_arguments(parser)
    cli.process_arguments(parser)


def run(args: cli.Args, overrides: cli.Overrides) -> int:
    if bool(args.path) == bool(args.config):
        raise UsageError("train: give --config=experiments/NAME.py, or the path of a config.json")
    unfrozen = config.load(args.path or args.config, overrides)
    cli.start_jax(args)
    from etils import epath

    from bigmodel.run import budget, identity, session

    runs = args.runs or "runs"
    if args.path and not args.runs:  # the config.json of a run continues in the folder of that run
        own = epath.Path(args.path).parent
        if own.name == identity.run_id(budget.finalize(unfrozen)):
            runs = str(own.parent)
    result = session.train(unfrozen, runs, name=args.name)
    home = f"{runs}/{result['run_id']}"
    if args.json:
        cli.print_json(result)
    elif result["status"] == "diverged":
        print(f"{home}: diverged; kept the last good step, {result['last_good_step']} of {result['steps']}")
    else:
        bits = f", {result['bits_per_byte']:.4f} bits per byte" if result["bits_per_byte"] else ""
        print(
            f"{home}: loss {result['loss']:.4f}{bits}; N {result['params']:,}, D {result['tokens']:,} "
            f"{result['unit']}, C {result['flops']:.3g} FLOPs, {result['wall_seconds']:.1f} s"
        )
    return 0
