"""Convert a published model into a run, or a run into a published form.

MODEL is a folder as Hugging Face's libraries write it or a GGUF file, and --out a run; or the other way round.
GPT-2, OPT, GPT-NeoX, Llama-shaped models (SmolLM2, grouped heads), BERT, T5 and Marian are known in both directions,
GGUF files as a source. The written folder holds config.json, model.safetensors (in several files above 5 GB) and the
tokenizer; adapters are merged, and a parametrisation's factors folded into the weights. Every tensor is accounted
for: one that is left over or missing is refused.

Examples:
  bigmodel convert data/smollm2 --out=runs/smollm2     # a run, which generate and train.init_from take
  bigmodel convert runs/0123456789ab --out=my-model    # a folder for AutoModelForCausalLM.from_pretrained
  bigmodel convert my-model --out=runs/again --data=news-bytes    # and data that it can be evaluated on
"""

import contextlib
import dataclasses
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from bigmodel import cli
from bigmodel.errors import UsageError


def arguments(parser: cli.Parser) -> None:
    add = parser.add_argument
    add("model", help="folder of a finished run, a Hugging Face folder, or a .gguf file")
    add("--out", required=True, help="folder to write; it must not exist")
    dtypes = ["float32", "float16", "bfloat16"]
    add(
        "--dtype",
        default="",
        choices=dtypes,
        metavar="DTYPE",
        help="of the tensors that are written (default: as they came)",
    )
    add("--window", type=int, default=0, help="positions of the run that is made; 0: as published")
    add("--data", default="", help="name of prepared data for the run that is made")
    add("--data-dir", default="", help="folder of the data (default: data, or the run's)")


def run(args: cli.Args, _: cli.Overrides) -> int:
    args.out = args.out.rstrip("/") or args.out
    if Path(args.out).exists():
        raise UsageError(f"--out={args.out!r} exists already: name another folder")
    cli.check_exists(Path(args.model), "model")
    cli.start_jax(args)
    from bigmodel.after import convert, opened
    from bigmodel.run import weights

    part = f"{args.out}.part"
    shutil.rmtree(part, ignore_errors=True)
    with contextlib.ExitStack() as undo:
        undo.callback(shutil.rmtree, part, ignore_errors=True)
        if weights.is_published(args.model):
            if args.dtype:
                raise UsageError("--dtype is of a written folder; a run's parameters are float32")
            found = opened.open_published(args.model, window=args.window)
            run_id = convert.write_run(found, args.model, part, args.data, args.data_dir or "data")
            beside = convert.copy_tokenizer(args.model, part)
            said: dict[str, Any] = {"out": args.out, "run_id": run_id, "family": found.family, "taken": found.said}
            lacks = [] if found.tokenizer else ["no tokenizer.json there: generate needs one"]
            lines = [f"{args.out}: a run of family {found.family}; {found.said}", *lacks]
        else:
            for option in ("window", "data"):
                if getattr(args, option):
                    raise UsageError(f"--{option} is of a run that is made, and {args.model!r} is one already")
            found = opened.open_run(args.model, args.data_dir)
            own = _tokenizer(found)
            if own is not None and found.module.init_cache is not None:  # what its texts end with
                found = dataclasses.replace(found, ends=(own.separator,))
            written = convert.write_folder(found, part, args.dtype)
            beside = _write_tokenizer(own, found, args.model, part)
            said = {"out": args.out, "family": found.family, "written": written}
            lines = [f"{args.out}: {written}"]
        os.replace(part, args.out)
    if args.json:
        cli.print_json({**said, "files": beside})
    else:
        print("\n".join([*lines, f"beside them: {', '.join(beside) or 'nothing'}"]))
    sys.stdout.flush()
    return 0


def _tokenizer(found: Any) -> Any:
    """The tokenizer that a run was trained with; None of one that was converted, and of one without text."""
    from bigmodel.prepare import tokenizer

    if found.published is not None or not found.tokenizer or found.family == "mlp":
        return None
    return tokenizer.load(found.tokenizer)


def _write_tokenizer(own: Any, found: Any, model: str, out: str) -> list[str]:
    """Writes the tokenizer of a run beside its weights; the names of its files."""
    from bigmodel.after import convert
    from bigmodel.prepare import tokenizer

    if found.published is not None:
        return convert.copy_tokenizer(model, out)
    if own is None:
        return []
    continues = found.module.init_cache is not None and found.module.start is None
    files = tokenizer.as_published(own, found.cfg.seq_len, before=continues)
    for name, text in files.items():
        (Path(out) / name).write_text(text, encoding="utf-8")
    return list(files)
