"""Scores of finished runs: what they are sums over, and that they equal scikit-learn's and lm-evaluation-harness's."""

import json
import math
import shutil
import warnings

import jax
import numpy as np
import pytest
from conftest import ROOT, drawn
from families import small
from ml_collections import FrozenConfigDict
from scipy.special import log_softmax
from sklearn import calibration, metrics

from bigmodel import data, models
from bigmodel.after import choices, convert, corruptions, evaluate, opened, scores, slices
from bigmodel.cli import main
from bigmodel.data import loader
from bigmodel.errors import UsageError
from bigmodel.prepare import tokenizer
from bigmodel.prepare.prepare import prepare
from bigmodel.run import record
from bigmodel.run.session import train

SPEECH = dict(source="text", name="bpe", seq_len=32)


def drawn_run(family, root, section=SPEECH, **options):
    """A run with weights at random, of real text."""
    module, cfg = models.family(family), data.source(section["source"]).get_config()
    cfg.update(section)
    data.finalize(cfg, root)
    sizes = data.describe(cfg, root).sizes
    model = small(module, **{"depth": 1, **sizes, **options})
    whole = {"family": family, "model": model.to_dict(), "data": cfg.to_dict(), "run": {"data_dir": root}}
    result = {"run_id": "drawn"}
    return evaluate.Run(
        FrozenConfigDict(whole), module, module.Model(model), drawn(module, model), result
    )  # fmt: skip


@pytest.fixture(scope="module")
def talker(data_dir, tmp_path_factory):
    """A decoder that has read a little of the speeches, as a finished run's folder."""
    from conftest import TINY

    from bigmodel import config

    root = tmp_path_factory.mktemp("runs")
    cfg = config.load(ROOT / "experiments/gpt.py", [*TINY, ("run.data_dir", data_dir), ("train.steps", 60)])
    return root / train(cfg, str(root), quiet=True)["run_id"]


@pytest.fixture(scope="module")
def bpe(data_dir):
    """The folder of the data, where the speeches are in tokens of a BPE, too."""
    out = f"{data_dir}/bpe"
    prepare(str(ROOT / "tests/data"), out, "bpe", 512, validation_fraction=0.2, workers=1, progress=False)
    return data_dir


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """An MLP on scikit-learn's digits, as a finished run's folder."""
    from bigmodel import config

    root = tmp_path_factory.mktemp("tables")
    pairs = [("model.width", 8), ("train.tokens", 0), ("train.steps", 10), ("run.wandb", "off")]
    return root / train(config.load(ROOT / "experiments/digits.py", pairs), str(root), quiet=True)["run_id"]


def spoken(capsys, *args):
    assert main.main(["evaluate", *map(str, args)]) == 0
    return capsys.readouterr().out


# ------------------------------------------------------------------------------------------ text


@pytest.mark.parametrize(
    ("family", "options", "first"),
    [
        ("decoder", {}, 1),
        ("decoder", {"objective": "prefix"}, 1),
        ("recurrent", {}, 1),
        ("encdec", {"objective": "prefix", "source_len": 8}, 8),
    ],
)
def test_perplexity_and_bits_per_byte_are_of_the_tokens_that_are_predicted(bpe, family, options, first):
    run = drawn_run(family, bpe, **options)
    found = evaluate.text(run, "validation", 5)
    cfg, examples = run.config.model, run.examples("validation")
    causal = run.family
    if family == "decoder":  # the loss of a prefix draws its length: of one token, it is the causal loss
        cfg = FrozenConfigDict({**cfg.to_dict(), "objective": "causal"})
    (batch,) = loader.eval_batches(examples, 5, 5, (0, 5))
    loss = float(causal.loss(causal.Model(cfg), run.variables, batch, jax.random.key(0), False)[1][0]["loss"][0])
    targets = batch["tokens"][:, first : first + len(found["by_position"])]
    assert found["tokens"] == targets.size and found["first_position"] == first
    assert found["loss"] == pytest.approx(loss / targets.size, rel=1e-5)
    assert found["perplexity"] == pytest.approx(math.exp(found["loss"]), rel=1e-12)
    read = tokenizer.load(f"{bpe}/bpe").tokenizer  # in whose alphabet each character is a byte
    size = sum(len(read.id_to_token(int(t))) for t in targets.flat if t != examples.separator)
    assert found["bytes"] == size and found["bits_per_byte"] == pytest.approx(loss / math.log(2) / size, rel=1e-5)


def test_bits_per_byte_are_left_out_where_a_tokens_bytes_are_unknown(bpe, monkeypatch):
    run = drawn_run("decoder", bpe)
    kind = type(run.examples("validation"))
    monkeypatch.setattr(kind, "text_bytes", lambda *_: None)
    assert evaluate.text(run, "validation", 2)["bits_per_byte"] is None


def test_other_data_need_the_runs_tokenizer(talker, bpe, capsys):
    """One row a source; the run's own is first."""
    prepare(str(ROOT / "tests/data"), f"{bpe}/half", validation_fraction=0.5, workers=1, progress=False)
    said = spoken(capsys, talker, "--data=half", "--limit=20")
    found = record.read_json(talker / "evaluation-validation.json")
    assert set(found["data"]) == {"speech", "half"} and found["loss"] == found["data"]["speech"]["loss"]
    assert said.index("speech") < said.index("half") and f"{found['data']['half']['perplexity']:.4f}" in said
    assert found["data"]["half"]["loss"] != found["loss"]
    assert main.main(["evaluate", str(talker), "--data=bpe"]) == 2
    assert "'bpe' has another tokenizer" in capsys.readouterr().err


def test_a_masked_loss_has_no_perplexity(data_dir, tmp_path, capsys):
    from bigmodel import config

    pairs = [
        ("model.width", 8), ("model.depth", 1), ("model.num_heads", 1), ("data.name", "speech"), ("data.seq_len", 16),
        ("train.steps", 1), ("train.batch_size", 4), ("train.tokens", 0), ("train.eval_examples", 10),
        ("optim.name", "sgd"), ("run.wandb", "off"), ("run.data_dir", data_dir),
    ]  # fmt: skip
    result = train(config.load(ROOT / "experiments/bert.py", pairs), str(tmp_path), quiet=True)
    home = tmp_path / result["run_id"]
    said = spoken(capsys, home, "--limit=10")
    found = record.read_json(home / "evaluation-validation.json")
    assert found["loss"] == pytest.approx(result["loss"], rel=1e-6)
    assert "perplexity" not in found and "pseudo-likelihood" in said


# ---------------------------------------------------------------------------------------- classes


@pytest.mark.parametrize("classes", [2, 4])
def test_classification_equals_scikit_learn(classes):
    rng = np.random.default_rng(classes)
    labels = rng.integers(0, classes, 300)
    logits = rng.normal(size=(300, classes)) + 1.5 * np.eye(classes)[labels]
    log_p = log_softmax(logits, axis=1)
    p, predicted = np.exp(log_p), np.argmax(logits, axis=1)
    found = scores.classification(log_p, labels, [str(k) for k in range(classes)])
    want = {"accuracy": metrics.accuracy_score(labels, predicted)}
    for mean in ("micro", "macro", "weighted"):
        for name in ("precision", "recall", "f1"):
            score = getattr(metrics, f"{name}_score")
            want[f"{mean}_{name}"] = score(labels, predicted, average=mean)
    each = metrics.f1_score(labels, predicted, average=None)
    want["negative_log_likelihood"] = metrics.log_loss(labels, p)
    one_hot = np.eye(classes)[labels]
    want["brier"] = np.mean(np.sum((p - one_hot) ** 2, axis=1)) / (2 if classes == 2 else 1)
    if classes == 2:
        want["auroc"] = metrics.roc_auc_score(labels, p[:, 1])
    assert {k: found[k] for k in want} == pytest.approx(want, abs=1e-12)
    assert [row["f1"] for row in found["classes"].values()] == pytest.approx(each, abs=1e-12)
    assert found["confusion"] == metrics.confusion_matrix(labels, predicted).tolist()
    right, confidence = predicted == labels, p.max(axis=1)
    share, mean = calibration.calibration_curve(right, confidence, n_bins=15)
    assert [b["accuracy"] for b in found["reliability"]] == pytest.approx(share, abs=1e-12)
    assert [b["confidence"] for b in found["reliability"]] == pytest.approx(mean, abs=1e-12)
    error = 0.0
    for k in range(15):
        inside = (confidence > k / 15) & (confidence <= (k + 1) / 15)
        error += abs(np.sum(right[inside]) - np.sum(confidence[inside])) / 300
    assert found["expected_calibration_error"] == pytest.approx(error, abs=1e-12)


def test_scores_that_a_split_does_not_have_are_left_out():
    """No ROC curve of one class, and no score that is NaN: a class that isn't there has scores of 0."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = scores.classification(np.log([[0.9, 0.1], [0.6, 0.4]]), np.array([0, 0]), ["ham", "spam"])
    assert found["auroc"] is None and found["classes"]["spam"]["recall"] == 0 and found["accuracy"] == 1
    (edge,) = scores.calibration(np.array([0.2]), np.array([True]))["reliability"]  # (low, high]
    assert (edge["low"], edge["high"]) == pytest.approx((2 / 15, 3 / 15))
    assert found["expected_calibration_error"] == pytest.approx(0.25)  # |1 - 0.9| / 2 + |1 - 0.6| / 2


def test_a_classifier_is_evaluated_with_a_figure_slices_and_noise(table, capsys):
    home = table
    said = spoken(capsys, home, "--slice=label,feature20", "--corrupt=noise:0.001,noise:2")
    found = record.read_json(home / "evaluation-validation.json")
    assert all((home / f"evaluation-validation-reliability.{form}").stat().st_size for form in ("png", "svg"))
    by_class = {name: row["mean"] for name, row in found["slices"]["label"]["slices"].items()}
    assert by_class == pytest.approx({name: row["recall"] for name, row in found["classes"].items()}, abs=1e-12)
    assert sum(row["examples"] for row in found["slices"]["feature20"]["slices"].values()) == found["examples"]
    little, much = found["corrupted"]["noise:0.001"], found["corrupted"]["noise:2"]
    assert little["accuracy"] + little["fall"] == pytest.approx(found["accuracy"], abs=1e-12)
    assert abs(little["fall"]) < 0.02 and much["low"] < much["fall"] < much["high"]
    assert "largest gap" in said and "noise:2" in said


@pytest.mark.parametrize(
    ("option", "told"),
    [
        ("--slice=colour", "'colour' is not one of"),
        ("--corrupt=typos:0.1", "'typos' is not one of noise"),
        ("--corrupt=noise:-1", "expected noise:AMOUNT"),
        ("--data=speech", "--data doesn't suit"),
        ("--choices=a --harness=b", "--choices can't be combined with --harness"),
        ("--choices=nowhere.jsonl", "a run of family 'mlp' doesn't continue text"),
    ],
)
def test_options_that_do_not_suit_are_refused(table, capsys, option, told):
    before = {path: path.stat().st_mtime_ns for path in table.iterdir()}
    assert main.main(["evaluate", str(table), *option.split()]) == 2
    assert told in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in table.iterdir()} == before


# ----------------------------------------------------------------------------------------- slices


def test_slices_have_wilsons_interval_and_small_ones_no_number():
    assert slices.wilson(8, 10) == pytest.approx([0.49016, 0.94331], abs=1e-5)  # Newcombe 1998, method 3
    right = np.array([1] * 8 + [0] * 2 + [1] * 9 + [0] * 40)
    found = slices.table(right, np.array(["a"] * 10 + ["b"] * 9 + ["c"] * 40))
    assert [*found["slices"]["a"].values()] == [10, 0.8, *slices.wilson(8, 10)]
    assert found["too_small"] == {"b": 9} and list(found["slices"]) == ["a", "c"]
    gap = found["gap"]
    assert (gap["highest"], gap["lowest"], gap["gap"]) == ("a", "c", 0.8) and gap["p"] < 0.01
    assert gap["interval"][0] <= 0.8 <= gap["interval"][1] and gap["interval"][0] > 0.4
    assert "gap" not in slices.table(right, np.array(["a"] * 59))


def test_the_largest_gap_of_slices_at_random_is_no_finding():
    """Though the interval of the two slices farthest apart mostly leaves out 0, as they were chosen for it."""
    rng = np.random.default_rng(0)
    found = [slices.table(rng.random(400) < 0.8, rng.integers(0, 20, 400), seed)["gap"] for seed in range(12)]
    assert sum(gap["interval"][0] > 0 for gap in found) > 6
    assert sum(gap["p"] < 0.05 for gap in found) <= 2


def test_numbers_are_sliced_by_quartiles_in_order_and_all_else_by_value():
    rng = np.random.default_rng(0)
    lengths = rng.permutation(np.arange(1, 101))
    found = slices.table(lengths / 7, slices.binned(lengths))
    assert list(found["slices"]) == ["1 to 25", "26 to 50", "51 to 75", "76 to 100"]
    assert found["slices"]["26 to 50"]["mean"] == pytest.approx(38 / 7)
    low, high = (found["slices"]["26 to 50"][k] for k in ("low", "high"))
    assert 26 / 7 < low < 38 / 7 < high < 50 / 7
    few = slices.table(np.ones(30), slices.binned([1, 2, None] * 10))
    assert sum(row["examples"] for row in few["slices"].values()) == 30 and len(few["slices"]) == 3


# ------------------------------------------------------------------------------------ corruptions


def test_typos_are_a_function_of_the_seed_and_as_many_as_asked():
    text = "他们在公园里散步，天气很好。 A walk in the park. " * 40
    drawn_ = [corruptions.typos(text, 0.1, np.random.default_rng([3, 5])) for _ in range(2)]
    assert drawn_[0] == drawn_[1] != corruptions.typos(text, 0.1, np.random.default_rng([3, 6]))
    assert set(drawn_[0]) == set(text)  # characters are moved, left out or doubled, and none is new
    one = [corruptions.typos("ab", 1.0, np.random.default_rng(k)) for k in range(60)]
    # The first is swapped with the second, left out or doubled; then the second is left out, doubled or last.
    assert set(one) == {"ba", "", "bb", "b", "aa", "aabb", "aab"}
    changed = sum(corruptions.typos("x" * 9 + "yz", 0.1, np.random.default_rng(k)) != "x" * 9 + "yz" for k in range(50))
    assert 15 < changed < 45
    assert corruptions.truncate("abcdef", 0.5, None) == "abc" and corruptions.truncate("ab", 0.01, None) == "a"


def test_changed_texts_are_encoded_as_prepare_encodes_them(tmp_path, monkeypatch):
    """Of which nothing is cut off, they are the examples as prepared; of which half is, tokens of that half."""
    from test_tasks import reviews

    reviews(monkeypatch, tmp_path, 80, str(tmp_path / "labelled"), 0.2)
    section = dict(source="tasks", name="labelled", seq_len=24)
    run = drawn_run("bert", str(tmp_path), section, objective="classify")
    read = tokenizer.load(tmp_path / "labelled")
    same = corruptions.changed(run, "test", 0, "truncate:1", read, 0)
    plain, texts = run.examples("test"), evaluate.texts(run, "test")
    half = corruptions.changed(run, "test", 0, "truncate:0.5", read, 0)
    for k in range(len(plain)):
        for key, value in plain[k].items():
            np.testing.assert_array_equal(same[k][key], value)
        ids = half[k]["tokens"][: half[k]["length"] - 1]
        assert read.decode(ids) == texts[k]["text"][: round(len(texts[k]["text"]) / 2)][:23]
    column = evaluate.columns(run, "test")
    assert list(column["length"]) == [len(t["text"].encode()) + 1 for t in texts] and set(column) > {"label", "text"}


# ---------------------------------------------------------------------------------------- choices

QUESTIONS = [
    {"prompt": "My fellow", "choices": ["citizens", "xqz potato"], "answer": 0},
    {"prompt": "The state of the ", "choices": ["Union", "zzz"], "answer": 0},
    {"prompt": "他说", "choices": ["你好", "a much longer answer"], "answer": 1},
    {"prompt": "We must", "choices": ["do", "act together", "jjj"], "answer": 1},
    {"prompt": "In the year", "choices": ["of", "that was"], "answer": 0},
]


def test_a_choices_likelihood_is_the_sum_over_its_tokens(talker, capsys):
    run = evaluate.restore(str(talker))
    read = tokenizer.load(f"{run.config.run.data_dir}/speech")

    def by_hand(context, continuation):
        ids = ([0] if not context else []) + read.encode(context + continuation)
        logits = np.asarray(run.model.apply(run.variables, np.array([ids[:-1]])), np.float64)[0]
        n = len(read.encode(continuation))
        return log_softmax(logits, axis=1)[np.arange(len(ids) - 1), ids[1:]][-n:].sum()

    pairs = [("The state of the", " Union"), ("", "Union"), ("他说", "你好")]
    found, _ = choices.log_likelihoods(run, [choices.encoded(read, *pair) for pair in pairs])
    assert found == pytest.approx([by_hand(*pair) for pair in pairs], rel=1e-5)
    spaced, moved = choices.encoded(read, "The state ", "of"), choices.encoded(read, "The state", " of")
    assert spaced == moved and bytes(spaced[1]) == b" of"
    # A long context is cut at its start to the window of 32 tokens and their target.
    long = read.encode("and so on " * 10)
    cut, _ = choices.log_likelihoods(run, [(long, read.encode("on")), (long[-31:], read.encode("on"))])
    assert cut[0] == cut[1] and "1 of 2 contexts are cut" in capsys.readouterr().err
    with pytest.raises(UsageError, match="a continuation has 33 tokens"):
        choices.log_likelihoods(run, [([1], [2] * 33)])


def test_choices_are_scored_by_likelihood_by_characters_and_by_bytes(monkeypatch, talker, tmp_path, capsys):
    table = {"aa": -3.0, "bbbb": -4.0, "你你": -4.5, "c": -2.0}
    monkeypatch.setattr(choices, "encoded", lambda _, context, choice: (context, choice))
    asked = []

    def likelihoods(_, pairs):
        asked.extend(pairs)
        return np.array([table[choice.strip()] for _, choice in pairs]), None

    monkeypatch.setattr(choices, "log_likelihoods", likelihoods)
    rows = [
        {"prompt": f"q{k}", "choices": ["aa", "bbbb", "你你"], "answer": answer}
        for k, answer in enumerate((0, 1, 1, 2))
    ]
    found = choices.multiple_choice(None, None, rows, 1)
    # The likeliest is aa; by characters it is bbbb (-1), by bytes 你你 (-0.75).
    assert (found["acc"], found["acc_norm"], found["acc_bytes"]) == (0, 2 / 3, 1 / 3)
    assert found["questions"] == 3 and asked[0] == ("q0 aa\n\nq1", " aa")
    assert found["acc_norm_interval"] == slices.wilson(2, 3)


def test_published_weights_are_asked_as_runs_are(bpe, tmp_path, capsys):
    run = drawn_run("decoder", bpe)
    home, questions = tmp_path / "gpt2", tmp_path / "questions.jsonl"
    questions.write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS))
    convert.write_folder(opened.Opened("decoder", run.config.model, run.variables["params"], "", (0,)), str(home))
    assert main.main(["evaluate", str(home), f"--choices={questions}"]) == 2
    assert "has no tokenizer.json" in capsys.readouterr().err
    shutil.copy(f"{bpe}/bpe/tokenizer.json", home)
    before = sorted(home.iterdir())
    found = json.loads(spoken(capsys, home, f"--choices={questions}", "--limit=3", "--shots=1", "--json"))
    expected = choices.multiple_choice(run, tokenizer.load(f"{bpe}/bpe"), QUESTIONS[:4], 1)
    assert found["questions"] == 3 and sorted(home.iterdir()) == before
    for theirs, ours in zip(found["log_likelihoods"], expected["log_likelihoods"], strict=True):
        assert theirs == pytest.approx(ours, abs=1e-4)


def test_published_weights_without_data_are_refused_with_the_command(tmp_path, capsys):
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert main.main(["evaluate", str(tmp_path)]) == 2
    assert f"bigmodel convert {tmp_path} --out=RUN --data=NAME" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('{"prompt": "a", "choices": ["b", "c"], "answer": 2}', "line 2: ValueError: prompt and choices are texts"),
        ('{"prompt": "a", "choices": ["b", "c"]}', "line 2: KeyError: 'answer'"),
        ("{", "line 2: JSONDecodeError"),
        ("[]", "line 2: TypeError"),
    ],
)
def test_bad_questions_are_refused(tmp_path, line, told):
    path = tmp_path / "questions.jsonl"
    path.write_text(json.dumps(QUESTIONS[0]) + "\n" + line + "\n")
    with pytest.raises(UsageError, match=told):
        choices.read(str(path))
    with pytest.raises(UsageError, match="can't read"):
        choices.read(str(tmp_path / "nowhere.jsonl"))


TASK = """
task: local
dataset_path: json
dataset_kwargs: {data_files: {test: "%(test)s", train: "%(train)s"}}
test_split: test
fewshot_split: train
fewshot_config: {sampler: first_n}
output_type: multiple_choice
doc_to_text: "{{prompt}}"
doc_to_choice: "{{choices}}"
doc_to_target: answer
metric_list: [{metric: acc}, {metric: acc_norm}, {metric: acc_bytes}]
"""


@pytest.mark.reference
def test_multiple_choice_equals_lm_evaluation_harness(talker, tmp_path, capsys, monkeypatch):
    """On a local task, with and without examples in the prompt, and the likelihoods that it has asked for."""
    pytest.importorskip("lm_eval")
    from lm_eval.api.instance import Instance

    from bigmodel.after import harness

    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "hf/datasets"))
    for name, rows in (("all", QUESTIONS), ("train", QUESTIONS[:1]), ("test", QUESTIONS[1:])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for test, shots, file in (("all", 0, "all"), ("test", 1, "all")):
        yaml = tmp_path / f"{test}.yaml"
        yaml.write_text(TASK % {"test": tmp_path / f"{test}.jsonl", "train": tmp_path / "train.jsonl"})
        spoken(capsys, talker, f"--harness={yaml}", f"--shots={shots}")
        theirs = record.read_json(talker / "evaluation-harness.json")["tasks"]["local"]
        spoken(capsys, talker, f"--choices={tmp_path / file}.jsonl", f"--shots={shots}")
        ours = record.read_json(talker / "evaluation-choices.json")
        assert ours["questions"] == 5 - shots == theirs["sample_len"]
        for name in choices.LENGTHS:
            assert theirs[f"{name},none"] == pytest.approx(ours[name], abs=1e-9), name
    run = evaluate.restore(str(talker))
    model = harness.Model(run, tokenizer.load(f"{run.config.run.data_dir}/speech"))
    asked = [Instance("loglikelihood", {}, ("In the year", f" {c}"), 0) for c in QUESTIONS[-1]["choices"]]
    found = [log_p for log_p, _ in model.loglikelihood(asked)]
    spoken(capsys, talker, f"--choices={tmp_path / 'all.jsonl'}")
    ours = record.read_json(talker / "evaluation-choices.json")["log_likelihoods"][-1]
    assert found == pytest.approx(ours, abs=1e-9)
    # Of a whole text: its windows' first tokens follow the separator, or what stands before the window.
    text = "and we shall go on together for the good of all"  # 47 bytes: two windows of 32
    ids = list(text.encode())
    parts = [([0], ids[:32]), (ids[14:32], ids[32:])]
    (rolled,) = model.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, (text,), 0)])
    assert rolled == pytest.approx(choices.log_likelihoods(run, parts)[0].sum(), abs=1e-4)
    # What it writes is the likeliest byte after another, up to a stop string.
    ids = list(b"In the year")
    for _ in range(9):
        logits = run.model.apply(run.variables, np.array([ids]))[0, -1]
        ids.append(int(np.argmax(logits)))
    written = bytes(ids[11:]).decode(errors="ignore")
    stop = written[4]
    asked = [{"until": [], "max_gen_toks": 9}, {"until": [stop], "max_gen_toks": 9}]
    requests = [Instance("generate_until", {}, ("In the year", how), k) for k, how in enumerate(asked)]
    assert model.generate_until(requests) == [written, written[: written.index(stop)]]
