"""A real published language model, SmolLM2-135M out of a package: its tokens beside transformers', and the examples."""

import json
import re
import shlex
import shutil

import pytest
from conftest import ROOT, TINY
from test_help import examples

from bigmodel import cli, config
from bigmodel.cli import main
from bigmodel.run.session import train

pytestmark = [pytest.mark.network, pytest.mark.slow]

PROMPTS = [
    "I love programming", "The capital of France is", "Once upon a time, in a small village by the sea,",
    "The three laws of thermodynamics are", "Dear Sir or Madam,\n\nI am writing to", "Q: What is 12 times 12?\nA:",
    "Photosynthesis is the process by which", "In 1969, Neil Armstrong",
    "今天天气很好，我们去公园散步吧。", "人工智能是", "从前有一座山，山上有一座庙，", "北京是中国的首都，",
    "我喜欢编程，因为", "春天来了，花园里的花",
    "def fibonacci(n):\n", "import numpy as np\n\nx = np.", "for (int i = 0; i < n; i++) {",
    "SELECT name, age FROM users WHERE",
    "<html>\n<head>\n<title>", "class Stack:\n    def __init__(self):\n        self.items = []\n\n    def push(self",
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    home = tmp_path_factory.mktemp("smollm2") / "data/smollm2"
    assert main.main(["prepare", "smollm2", f"--out={home}"]) == 0
    return home


@pytest.mark.reference
def test_the_first_64_greedy_tokens_are_transformers(folder, tmp_path):
    """Of 20 prompts, English, Chinese and code, from the same file, which transformers dequantises by itself."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    (file,) = folder.glob("*.gguf")
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"prompt": p}) + "\n" for p in PROMPTS))
    out = tmp_path / "out.jsonl"
    assert main.main(["generate", str(folder), f"--prompts={tmp_path / 'prompts.jsonl'}", f"--out={out}"]) == 0
    rows = [json.loads(line) for line in out.read_text().split("\n")[:-1]]
    theirs = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file.name, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file.name)
    same = 0
    for prompt, row in zip(PROMPTS, rows, strict=True):
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        with torch.no_grad():
            found = theirs.generate(ids, max_new_tokens=64, do_sample=False)[0, ids.shape[1] :].tolist()
        same += row["tokens"] == found
        assert row["tokens"] == found, prompt
    print(f"{same} of {len(PROMPTS)} prompts: all tokens equal")


@pytest.mark.parametrize("verb", ["generate", "convert"])
def test_every_example_of_the_help_runs(verb, folder, data_dir, tmp_path, monkeypatch, capsys):
    """In a folder with what they name: a run, the published model, a file of prompts, prepared data."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(folder, "data/smollm2")
    shutil.copytree(f"{data_dir}/speech", "data/news-bytes")
    pairs = [*TINY, ("run.data_dir", str(tmp_path / "data")), ("data.name", "news-bytes")]
    plain = [("model.parametrization", "standard"), ("model.position", "learned")]
    cfg = config.load(ROOT / "experiments/gpt.py", [*pairs, *plain])
    made = train(cfg, "runs", quiet=True)["run_id"]
    (tmp_path / "questions.txt").write_text("Why is the sky blue?\n今天天气很好，\n")
    commands = examples(cli.verb(verb).__doc__)
    assert len(commands) >= 3
    for command in commands:
        words = shlex.split(command.replace("0123456789ab", made), comments=True)[1:]
        words = [re.sub(r"^--max-new-tokens=\d+", "--max-new-tokens=16", word) for word in words]
        assert main.main(words) == 0, (command, capsys.readouterr().err)
        print(capsys.readouterr().out)
    if verb == "generate":
        assert len((tmp_path / "answers.jsonl").read_text().split("\n")) == 3
    else:
        assert main.main(["generate", "runs/smollm2", "--prompt=I love", "--max-new-tokens=4"]) == 0
