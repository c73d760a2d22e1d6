"""Continue prompts with a model, or draw pictures of them.

MODEL is the folder of a finished run (of family dalle: for pictures), a folder as Hugging Face's libraries write it
(config.json, *.safetensors, tokenizer.json), or a .gguf file of a Llama-shaped model with its tokenizer.json beside it.

Without --temperature the likeliest token is taken (greedy); several sequences are sampled at temperature 1. With
--prompts, continuations go to --out as JSON lines (prompt, text, tokens, their log-probabilities under the model, and
why the text ended): a command that was killed goes on where it was.

Pictures are sampled at temperature 1, if nothing else is said, and --out is a folder, for the pictures, a sheet of them
and codes.json; --rerank puts the likeliest first.

Examples:
  bigmodel generate runs/0123456789ab --prompt="I love programming" --num-return-sequences=4
  bigmodel generate data/smollm2 --chat --prompt="Why is the sky blue?" --max-new-tokens=128
  bigmodel generate data/smollm2 --prompt="今天天气很好，我们去公园散步吧。" --temperature=0.8 --top-p=0.9 --seed=1
  bigmodel generate runs/0123456789ab --prompt="a red car" --num-return-sequences=4 --out=cars
  bigmodel generate data/smollm2 --prompts=questions.txt --out=answers.jsonl --beams=4 --stop=". "
"""

import dataclasses
import functools
import json
import sys
from pathlib import Path
from typing import Any

from bigmodel import cli, errors
from bigmodel.errors import UsageError, note


def arguments(parser: cli.Parser) -> None:
    add = parser.add_argument
    add("model", help="folder of a finished run, a Hugging Face folder, or a .gguf file")
    add("--prompt", action="append", default=[], help="text to continue; can be repeated")
    add("--prompts", default="", help="file of prompts: a line each, or .jsonl with a key 'prompt'")
    add("--out", default="", help="file for the continuations, .jsonl; needed with --prompts")
    add("--max-new-tokens", type=int, default=64, help="longest continuation")
    add("--min-new-tokens", type=int, default=0, help="shortest continuation, if no stop string ends it")
    add("--num-return-sequences", type=int, default=1, help="continuations of each prompt")
    add("--temperature", type=float, default=None, help="logits are divided by it; 0: greedy")
    add("--top-k", type=int, default=0, help="sample among the k likeliest tokens; 0: all")
    add("--top-p", type=float, default=1.0, help="sample among the likeliest tokens of this probability together")
    add("--min-p", type=float, default=0.0, help="sample among tokens at least this part as likely as the likeliest")
    add("--repetition-penalty", type=float, default=1.0, help="makes tokens that were seen less likely; 1: none")
    add("--beams", type=int, default=0, help="beam search with this many beams")
    add("--length-penalty", type=float, default=0.6, help="of beam search: log p / ((5 + n) / 6)^penalty")
    add("--stop", action="append", default=[], help="string that ends a continuation; can be repeated")
    add("--seed", type=int, default=0, help="of sampling: prompt and sequence number decide the rest")
    add("--chat", action="store_true", help="ask: each prompt is a user's turn, in ChatML")
    add("--batch-size", type=int, default=8, help="prompts at once")
    add("--mesh", default="", help="of devices, as data=2,tensor=4 (default: one device)")
    dtypes = ["float32", "bfloat16"]
    add("--dtype", default="", choices=dtypes, metavar="DTYPE", help="of weights and products (default: as trained)")
    add("--data-dir", default="", help="folder of a run's data, if it has moved")
    add("--rerank", default="", metavar="RUN", help="of pictures: a run of clip, which puts them in order")
    text = "of pictures: the run of dvae that made the codes, if it has moved"
    add("--autoencoder", default="", metavar="RUN", help=text)


def run(args: cli.Args, _: cli.Overrides) -> int:
    pictures = _paints(args.model)
    settings = _settings(args, pictures)
    texts = _prompts(args, pictures)
    cli.check_exists(Path(args.model), "model")
    cli.start_jax(args)
    if pictures:
        return _paint(args, texts, settings)
    if args.rerank or args.autoencoder:
        raise UsageError("--rerank and --autoencoder are of pictures, and this model writes text")
    from bigmodel.after import continuations, decode

    decoder, tokenizer, encode, stop = _open(args)
    prompts = [(k, text, encode(text)) for k, text in enumerate(texts)]
    if not all(ids for _, _, ids in prompts):
        raise UsageError("a prompt has no tokens: give some text")
    vocabulary, highest = decoder.cfg.vocab_size, max(t for _, _, p in prompts for t in p)
    if highest >= vocabulary:
        raise UsageError(
            f"{args.model!r}: the tokenizer's token {highest} is past the model's vocabulary of {vocabulary}"
        )
    if settings.beams > vocabulary - len(decoder.ends):
        raise UsageError(f"--beams={settings.beams}: more than the {vocabulary} tokens of the model can begin")
    length = decode.room(decoder.cfg, [len(p) for _, _, p in prompts], settings.max_new_tokens, decoder.reads_source)
    settings = dataclasses.replace(settings, max_new_tokens=length, stop=(*settings.stop, *stop))
    if args.prompts:
        return _file(args, decoder, tokenizer, prompts, settings)
    alone = len(prompts) == settings.sequences == 1 and not settings.beams and not args.json
    found = []
    for batch in continuations.batches(prompts, args.batch_size):
        if alone and not args.chat:  # an answer is no continuation of the question
            print(batch[0][1], end="", flush=True)
        on_text = (lambda text: print(text, end="", flush=True)) if alone else (lambda _: None)
        found += continuations.run(decoder, tokenizer, batch, settings, on_text=on_text)
    found.sort(key=lambda r: (r["number"], r["sequence"]))
    if args.json:
        cli.print_json(found)
    elif alone:
        print()
    else:
        for row in found:
            print(f"--- {row['number'] + 1}.{row['sequence'] + 1} ({row['finish']}, {len(row['tokens'])} tokens)")
            print(row["text"] if args.chat else row["prompt"] + row["text"])
    return 0


def _paints(model: str) -> bool:
    """Whether a folder has a run of family dalle."""
    try:
        return bool(json.loads((Path(model) / "config.json").read_text()).get("family") == "dalle")
    except (OSError, ValueError, AttributeError, RecursionError):
        return False


def _paint(args: cli.Args, texts: list[str], settings: Any) -> int:
    """Writes the pictures of captions into --out, and prints how like their captions they are."""
    import numpy as np
    from PIL import Image

    from bigmodel import data, files
    from bigmodel.after import evaluate, paint
    from bigmodel.laws.figures import evaluation, style
    from bigmodel.prepare import tokenizer

    def encoder(run: Any) -> Any:
        return tokenizer.load(data.folder(run.config.data, run.config.run.data_dir))

    plain = {"beams": 0, "stop": [], "chat": False, "mesh": "", "dtype": "", "min_new_tokens": 0, "max_new_tokens": 64}
    plain["repetition_penalty"] = 1.0
    if wrong := [f"--{name.replace('_', '-')}" for name, value in plain.items() if getattr(args, name) != value]:
        raise UsageError(f"{', '.join(wrong)}: not of pictures")
    run = evaluate.restore(args.model, args.data_dir)
    made_by = paint.autoencoder(run, args.autoencoder)
    ranks = evaluate.restore(args.rerank) if args.rerank else None
    n, total = settings.sequences, len(texts) * settings.sequences

    def said(done: int) -> None:
        if sys.stderr.isatty():
            print(f"\r\x1b[Kpictures {done}/{total}", end="\n" if done == total else "", file=sys.stderr, flush=True)

    codes = paint.codes(run, encoder(run), texts, n, settings.how, settings.seed, said).reshape(total, -1)
    images = paint.pixels(made_by, codes.reshape(total, run.config.model.grid_height, -1))
    like = paint.likeness(ranks, encoder(ranks), images, texts) if ranks else None
    found: list[dict[str, Any]] = []
    for k, text in enumerate(texts):
        rows = [
            {"caption": text, "sample": j, "codes": codes[k * n + j].tolist(), "image": k * n + j} for j in range(n)
        ]
        if like is not None:
            rows = [{**row, "likeness": float(like[row["image"], k])} for row in rows]
        found += sorted(rows, key=lambda row: -row.get("likeness", 0.0))
    out = Path(args.out)
    with files.writing(args.out), style.matplotlib.rc_context(style.PAGE.style()):
        out.mkdir(parents=True, exist_ok=True)
        shown = [[images[row["image"]] for row in found[k : k + n]] for k in range(0, total, n)]
        for row in found:
            k, j = divmod(row["image"], n)
            row["file"] = f"{k + 1}-{j + 1}.png"
            Image.fromarray(images[row.pop("image")].squeeze()).save(out / row["file"])
        # The figures' font has no other script's letters.
        titles = [text if text.isascii() else f"{k + 1}, in codes.json" for k, text in enumerate(texts)]
        first = [[like is not None and j == 0 for j in range(n)]] * len(texts)
        style.save(evaluation.listed(shown, titles, first), out / "sheet")
        (out / "codes.json").write_text(json.dumps(found, ensure_ascii=False, indent=1) + "\n")
    if args.json:
        cli.print_json(found)
        return 0
    order = ", the likeliest first (framed)" if like is not None else ""
    print(f"{total} pictures of {len(texts)} captions in {args.out}: sheet.png{order}")
    if like is not None and len(texts) > 1:
        own_B = np.repeat(np.arange(len(texts)), n)
        others = like < like[np.arange(total), own_B][:, None]
        share = others.sum() / (total * (len(texts) - 1))
        print(f"its caption is likelier than another's: {share:.1%} of pictures and other captions (chance 50 %)")
    return 0


def _settings(args: cli.Args, pictures: bool = False) -> Any:
    """Checks the options, and says what is chosen where they leave it open."""
    positive = dict.fromkeys(("max_new_tokens", "num_return_sequences", "batch_size"), "[1, inf)")
    or_none = dict.fromkeys(("top_k", "beams", "length_penalty", "min_new_tokens"), "[0, inf)")
    parts = {"top_p": "(0, 1]", "min_p": "[0, 1]", "repetition_penalty": "(0, inf)", "seed": f"[0, {2**32})"}
    errors.check_ranges("--", args, **positive, **or_none, **parts)
    if args.temperature is not None:
        errors.check_ranges("--", args, temperature="[0, inf)")
    from bigmodel.after.continuations import Settings
    from bigmodel.after.generate import Sampling

    sequences, temperature = args.num_return_sequences, args.temperature
    filters = args.top_k or args.top_p < 1 or args.min_p
    if args.beams:
        if temperature or filters or args.repetition_penalty != 1 or args.min_new_tokens:
            raise UsageError("--beams searches: it takes no temperature, filters, repetition penalty or least length")
        if sequences > args.beams:
            raise UsageError(f"--num-return-sequences={sequences}: beam search returns at most --beams={args.beams}")
    elif temperature is None and (sequences > 1 or filters or pictures):
        temperature = 1.0
        note("sampled at temperature 1; --temperature sets another")
    elif not temperature and sequences > 1:
        raise UsageError("--num-return-sequences above 1 needs --temperature above 0 or --beams: greedy has one answer")
    elif temperature == 0 and filters:
        raise UsageError("--temperature=0 takes the likeliest token: --top-k, --top-p and --min-p change nothing")
    how = Sampling(temperature or 0.0, args.top_k, args.top_p, args.min_p, args.repetition_penalty, args.min_new_tokens)
    if "" in args.stop:
        raise UsageError("--stop: an empty string ends every text at once")
    return Settings(args.max_new_tokens, sequences, how, args.beams, args.length_penalty, tuple(args.stop), args.seed)


def _prompts(args: cli.Args, pictures: bool) -> list[str]:
    if bool(args.prompt) == bool(args.prompts):
        raise UsageError("give --prompt=TEXT or --prompts=FILE")
    if pictures and not args.out:
        raise UsageError("pictures need --out=FOLDER")
    if not pictures and bool(args.prompts) != bool(args.out):
        raise UsageError("--prompts=FILE and --out=FILE.jsonl belong together")
    found = list(args.prompt) or _lines(args)
    for k, text in enumerate(found):
        try:
            text.encode()
        except UnicodeEncodeError as e:
            raise UsageError(f"prompt {k + 1} is no text: it has half of a surrogate pair in it") from e
    return found


def _lines(args: cli.Args) -> list[str]:
    try:
        lines = Path(args.prompts).read_text(encoding="utf-8-sig").removesuffix("\n").split("\n")
    except (OSError, UnicodeDecodeError) as e:
        raise UsageError(f"can't read --prompts={args.prompts!r}: {getattr(e, 'strerror', None) or e}") from e
    found = []
    for k, line in enumerate(lines):
        if not args.prompts.endswith(".jsonl"):
            found.append(line)
            continue
        try:
            row = json.loads(line)
            found.append(row["prompt"])
            if not isinstance(row["prompt"], str):
                raise TypeError("'prompt' is no text")
        except (ValueError, KeyError, TypeError, RecursionError) as e:
            raise UsageError(f"{args.prompts!r}, line {k + 1}: no JSON object with a key 'prompt' ({e})") from e
    if empty := [k + 1 for k, text in enumerate(found) if not text]:
        raise UsageError(f"{args.prompts!r}, line {empty[0]}: an empty prompt")
    return found


def _open(args: cli.Args) -> Any:
    """(the model's decoder, its tokenizer, a prompt's text -> tokens, strings that end a text)."""
    from ml_collections import FrozenConfigDict

    from bigmodel import models
    from bigmodel.after import decode, opened
    from bigmodel.prepare import chats, tokenizer
    from bigmodel.run import weights

    mesh = cli.mesh(args.mesh)

    def putting(family: str, cfg: Any) -> Any:
        module = models.family(family)
        decode.check(family, module, cfg)
        return decode.placing(module, mesh, args.dtype or "float32")

    if weights.is_published(args.model):
        found = opened.open_published(args.model, putting)
    else:
        found = opened.open_run(args.model, args.data_dir, putting)
    if not found.tokenizer:
        raise UsageError(f"{args.model!r} has no tokenizer.json, which turns text into its tokens")
    chosen: Any = tokenizer.Published(found.tokenizer) if found.published else tokenizer.load(found.tokenizer)
    encode, ends = chosen.encode, found.ends
    stop: tuple[str, ...] = ()
    if args.chat:
        own = tokenizer.ready(found.tokenizer) if found.published else chosen
        chats.check(own, "" if found.published else found.tokenizer)
        ends, stop = ends or chats.ends(own), () if chats.ends(own) else (chats.END,)
        encode = functools.partial(chats.turn, own)
    elif not found.published:
        ends = (chosen.separator,)
        if found.module.start is None:  # a run has seen each document after a separator
            encode = lambda text: [chosen.separator, *chosen.encode(text)]  # noqa: E731
    cfg = FrozenConfigDict({**found.cfg.to_dict(), "dtype": args.dtype}) if args.dtype else found.cfg
    return decode.Decoder(found.module, cfg, found.params, mesh, ends), chosen, encode, stop


def _file(args: cli.Args, decoder: Any, tokenizer: Any, prompts: Any, settings: Any) -> int:
    from rich.console import Console
    from rich.progress import track

    from bigmodel.after import continuations
    from bigmodel.run import weights

    model = weights.identity(args.model)
    # Tokens, too: the tokenizer and the end of a text are no part of a model's identity.
    given = [(text, list(tokens)) for _, text, tokens in prompts]
    made = {"model": model, "settings": dataclasses.asdict(settings), "prompts": given, "ends": decoder.ends.tolist()}
    rows = continuations.Rows(args.out, {**made, "chat": args.chat, "dtype": args.dtype}, settings.sequences)
    if rows.done:
        note(f"{len(rows.done)} of {len(prompts)} prompts are in {args.out!r} already")
    left = [p for p in prompts if p[0] not in rows.done]
    groups = list(continuations.batches(left, args.batch_size))
    quiet = not sys.stderr.isatty()
    for batch in track(groups, "generating", console=Console(stderr=True), disable=quiet):
        rows.add(continuations.run(decoder, tokenizer, batch, settings, args.batch_size, chunk=32))
    rows.finish()
    print(f"{len(rows.rows)} continuations of {len(prompts)} prompts in {args.out}")
    return 0
