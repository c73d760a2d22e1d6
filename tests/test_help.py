"""--help: every verb has one sentence and examples, and every example is a command that the parser accepts."""

import re
import shlex

import pytest
from conftest import ROOT

from bigmodel import cli, config
from bigmodel.cli import main


def examples(text):
    """The commands of a help text, one string each."""
    joined = text.partition("Examples:\n")[2].replace("\\\n", " ")
    return [line.strip() for line in joined.splitlines() if line.startswith("  bigmodel ")]


ALL = [line for name in cli.verbs() for line in examples(cli.verb(name).__doc__)]
ALL += [re.split(r"\s{2,}", line.strip())[0] for line in main.__doc__.splitlines() if line.startswith("  bigmodel ")]


@pytest.mark.parametrize("name", cli.verbs())
def test_a_help_text_is_one_sentence_and_examples(name):
    text = cli.verb(name).__doc__
    assert re.fullmatch(r"[A-Z][^.]{,70}\.", text.splitlines()[0])
    assert len(examples(text)) >= 2 and all(line.startswith(f"bigmodel {name} ") for line in examples(text))


@pytest.mark.parametrize("line", ALL)
def test_an_example_is_accepted(line):
    overrides, rest = config.parse_flags(shlex.split(line, comments=True)[1:])
    args, unknown = main.parser().parse_known_args(rest)
    assert not unknown and (not overrides or cli.verb(args.verb).CONFIGURED)
    made = args.out if args.verb == "plan" else None
    for path in re.findall(r"(?:experiments|sweeps)/\w+\.py", line):
        assert path == made or (ROOT / path).is_file(), path


def test_defaults_are_shown():
    shown = " ".join(main.verb_parsers(main.parser())["fit"].format_help().split())
    assert "number of resamples (default: 1000)" in shown and "on log L (default: 0.001)" in shown
    assert "(default: None)" not in shown and "(default: False)" not in shown
