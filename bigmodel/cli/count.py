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
    from bigmodel.run import budget

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
    name, note = args.config or args.model, row.get("note", "")
    numbers = {"name": name, "family": family, "source": row["source"], "note": note, **budget.describe(family, model)}
    cli.print_json(numbers) if args.json else print("\n".join(budget.describe_text(numbers)))
    return 0
