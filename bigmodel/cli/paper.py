"""Recompute the numbers of a paper with our models and fits.

Every row shows the published number, ours and the difference. A row is ok if the difference is within its tolerance;
"-" marks a row that is shown but not judged. Some rows need runs that others published and that bigmodel does not
ship: a line names the file and its public repository. --points takes that file under any name, or a folder with it.
Exit code 1: a row is not ok.

Examples:
  bigmodel paper list
  bigmodel paper gpt3                                         # the 8 sizes of Table 2.1
  bigmodel paper chinchilla --points=points/ --out=tables/    # also what needs the published runs
"""

from bigmodel import cli
from bigmodel.errors import UsageError


def arguments(parser: cli.Parser) -> None:
    parser.add_argument("name", help="a paper, or `list`")
    points = "a file of points, or a folder with it; repeatable"
    parser.add_argument("--points", action="append", default=[], metavar="PATH", help=points)
    parser.add_argument("--out", metavar="FOLDER", help="write NAME.md, NAME.tex and NAME.json here")


def run(args: cli.Args, _: cli.Overrides) -> int:
    from bigmodel import papers

    if args.name == "list":
        return _list(args)
    result = papers.check(args.name, args.points, cli.progress)
    cli.progress("")
    written = papers.write(result, args.out) if args.out else []
    if args.json:
        cli.print_json(result.to_dict())
    else:
        print("\n".join(papers.text(result)))
        if written:
            print(f"written: {', '.join(map(str, written))}")
    return 0 if result.ok else 1


def _list(args: cli.Args) -> int:
    from bigmodel import papers

    if args.points or args.out:
        raise UsageError("paper list takes neither --points nor --out")
    found = []
    for name in papers.names():
        module = papers.paper(name)
        needs = [p.name for p in papers.wanted(module)]
        found.append({"name": name, "title": module.TITLE, "source": module.SOURCE, "points": needs})
    if args.json:
        cli.print_json(found)
    else:
        rows = [[p["name"], p["title"], ", ".join(p["points"])] for p in found]
        print(cli.table(["paper", "what", "points"], rows))
    return 0
