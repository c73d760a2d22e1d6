"""Count parameters, FLOPs and memory of a model without building it.

N is counted in three conventions: total, nonembedding and kaplan.

Examples:
  bigmodel count gpt3-175b
  bigmodel count --config=experiments/gpt.py --config.model.width=128
  bigmodel count list    # the published models
"""

from typing import Any

from bigmodel import cli, config
from bigmodel.errors import UsageError

CONFIGURED = True


def arguments(parser: cli.Parser) -> None:
    parser.add_argument("model", nargs="?", help="a published name, or `list`")
    parser.add_argument("--config", metavar="FILE[:VARIANT]", help="a file with get_config()")


def run(args: cli.Args, overrides: cli.Overrides) -> int:
    from bigmodel import models
    from bigmodel.run import budget, counts

    if args.model == "list":
        names = [name for f in models.names() for name in models.family(f).PUBLISHED]
        cli.print_json(names) if args.json else print("\n".join(names))
        return 0
    if bool(args.model) == bool(args.config):
        raise UsageError("count: give a published name (`bigmodel count list`) or --config=experiments/NAME.py")
    row: dict[str, Any] = {"source": ""}
    if args.config:
        frozen = budget.finalize(config.load(args.config, overrides))
        family, model = frozen.family, frozen.model
    else:
        family, row = models.published(args.model)
        section = config.ConfigDict({"model": models.family(family).get_config()})
        section.model.update(row["model"])
        config.override_all(section, overrides)
        model = section.model
        models.family(family).finalize(model)
    learning = budget.derive(frozen).to_dict().get("trainable") if args.config else None
    name, note = args.config or args.model, row.get("note", "")
    numbers = {"name": name, "family": family, "source": row["source"], "note": note, **counts.describe(family, model)}
    numbers |= {"trainable": learning} if learning is not None else {}
    cli.print_json(numbers) if args.json else print("\n".join(_text(numbers)))
    return 0


def _text(numbers: dict[str, Any]) -> list[str]:
    state = ", ".join(f"{name} {size / 2**30:,.3g}" for name, size in numbers["state_bytes"].items())
    unit = "token" if numbers["units_per_example"] > 1 else "example"
    return [
        f"{numbers['name']} ({numbers['family']}){'; ' + numbers['source'] if numbers['source'] else ''}",
        f"  parameters             {numbers['params']:>18,}",
        *([f"  that learn             {numbers['trainable']:>18,}"] if "trainable" in numbers else []),
        f"  without embeddings     {numbers['params_nonembedding']:>18,}",
        f"  Kaplan's N             {numbers['params_kaplan']:>18,}",
        f"  train FLOPs per {unit:<7}{numbers['train_flops_per_unit']:>18.4g}   (6N: "
        f"{numbers['train_flops_per_unit_6n']:.4g})",
        f"  float32 training state, GiB: {state}",
        *([f"  note: {numbers['note']}"] if numbers["note"] else []),
    ]
