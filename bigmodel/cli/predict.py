"""Predict the loss of a model from a fitted law.

Prints the loss at N parameters and D tokens with two intervals, one of the law and one of a single run, which also
scatters about the law; how far that is from the fitted runs; and how far off the law was when it was tested at a gap.
`bigmodel fit POINTS --out=fit.json` makes the law.

Examples:
  bigmodel predict --law=fit.json --params=1.3e9 --tokens=26e9
  bigmodel predict --law=fit.json --params=1.3e9 --tokens=26e9 --json
"""

from pathlib import Path

from bigmodel import cli


def arguments(parser: cli.Parser) -> None:
    add = parser.add_argument
    add("--law", required=True, metavar="FIT.JSON", help="a file that `bigmodel fit --out=` wrote")
    add("--form", default="", metavar="FILE.py", help="for a law of your own: its file")
    add("--params", type=float, required=True, metavar="N", help="parameters, counted as the fitted runs count them")
    add("--tokens", type=float, required=True, metavar="D", help="tokens, or examples, to train on")


def run(args: cli.Args, _: cli.Overrides) -> int:
    cli.check_exists(Path(args.law))
    from bigmodel.laws import fitted, predict

    law = fitted.read(args.law, args.form)
    out = predict.make(law, args.params, args.tokens)
    cli.print_json(out) if args.json else print(predict.text(out, law.unit))
    return 0
