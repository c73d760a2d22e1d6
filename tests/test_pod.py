"""Programs for machines that are not there: what is counted in them follows formulas; what does not fit is refused."""

import importlib.util
import json
import os
import subprocess
import sys
import time

import pytest
from conftest import ROOT, bigmodel

sys.path.insert(0, str(ROOT / "benchmarks"))
import pod_published

from bigmodel import config, models
from bigmodel.cli import compile as verb
from bigmodel.errors import UsageError
from bigmodel.ops import sharding
from bigmodel.pods import aot, hlo, layout, published
from bigmodel.pods.layout import Topology
from bigmodel.run import budget, executables, program

N, D, B, SEVEN_EIGHTHS = 5, 64, 32, 7 / 8


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    out = tmp_path_factory.mktemp("pod") / "out.json"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests")))}
    subprocess.run([sys.executable, ROOT / "tests/pod_worker.py", out], cwd=ROOT, env=env, check=True, timeout=400)
    return json.loads(out.read_text())


def test_what_fsdp_gathers(programs):
    count, size, axes = programs["all-gather"]["all-gather"]
    assert count == N and axes == ["fsdp"]
    assert size == pytest.approx(4 * N * D * D * SEVEN_EIGHTHS, rel=0.05)


def test_what_a_reduce_scatter_sends(programs):
    count, size, axes = programs["reduce-scatter"]["reduce-scatter"]
    assert count == N and axes == ["fsdp"]
    assert size == pytest.approx(4 * N * B * D * SEVEN_EIGHTHS, rel=0.05)


def test_what_tensor_parallelism_reduces(programs):
    count, size, axes = programs["all-reduce"]["all-reduce"]
    assert count == N and axes == ["tensor"]
    assert size == pytest.approx(4 * 2 * N * B * D * SEVEN_EIGHTHS, rel=0.05)


def test_what_a_train_step_gathers(programs):
    """The blocks' matrices, forward and backward, and no more than the tables beside them."""
    step = programs["step"]
    _, size, axes = step["counted"]["all-gather"]
    least = 4 * 2 * step["block_params"] * SEVEN_EIGHTHS
    tables = 4 * 3 * (512 + 32) * D
    assert axes == ["fsdp"] and least * 0.95 <= size <= (least + tables) * 1.05, (size, least, tables)


def test_a_loop_over_tokens_exchanges_nothing(programs):
    """An LSTM's weights are gathered, and their gradient exchanged, once a window of 32 tokens."""
    counts = {kind: row[0] for kind, row in programs["lstm"]["counted"].items()}
    assert 0 < counts["all-gather"] <= 16 and sum(counts.values()) < 40, counts


def test_the_state_of_a_layout_is_the_program_s(programs):
    step = programs["step"]
    cfg = config.ConfigDict(config._tuples(step["config"]))
    frozen = budget.FrozenConfigDict(cfg)
    mesh = {"slices": 1, "data": 1, "fsdp": 8, "sequence": 1, "tensor": 1}
    found = layout.estimate(frozen, mesh, Topology("v5e:2x4"))
    params = layout._state(layout._static(frozen), jax_mesh(mesh))[0]
    batch = 8 * 33 * 4 / 8
    assert found.state_bytes - params == pytest.approx(step["arguments"] - batch, rel=0.01)


def jax_mesh(mesh):
    import jax

    from bigmodel.ops import sharding

    return jax.sharding.AbstractMesh(tuple(mesh.values()), sharding.AXES)


LOOPS = """HloModule nested

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%inner_cond (p: (s32[], f32[8,4])) -> pred[] {
  %p = (s32[], f32[8,4]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %limit = s32[] constant(9)
  ROOT %less = pred[] compare(%i, %limit), direction=LT
}

%inner_body (p: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %p = (s32[], f32[8,4]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %two = s32[] constant(2)
  %next = s32[] add(%i, %two)
  %x = f32[8,4]{1,0} get-tuple-element(%p), index=1
  %sum = f32[8,4]{1,0:T(8,128)S(1)} all-reduce(%x), channel_id=1, replica_groups=[2,4]<=[4,2]T(1,0), to_apply=%add
  ROOT %out = (s32[], f32[8,4]{1,0}) tuple(%next, %sum)
}

%outer_cond (p: (s32[], f32[8,4])) -> pred[] {
  %p = (s32[], f32[8,4]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %limit = s32[] constant(3)
  ROOT %less = pred[] compare(%i, %limit), direction=LT
}

%outer_body (p: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %p = (s32[], f32[8,4]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %one = s32[] constant(1)
  %next = s32[] add(%i, %one)
  %x = f32[8,4]{1,0} get-tuple-element(%p), index=1
  %from = s32[] constant(1)
  %init = (s32[], f32[8,4]{1,0}) tuple(%from, %x)
  %loop = (s32[], f32[8,4]{1,0}) while(%init), condition=%inner_cond, body=%inner_body
  %y = f32[8,4]{1,0} get-tuple-element(%loop), index=1
  ROOT %out = (s32[], f32[8,4]{1,0}) tuple(%next, %y)
}

ENTRY %main (x: f32[8,4]) -> f32[8,4] {
  %x = f32[8,4]{1,0} parameter(0)
  %zero = s32[] constant(0)
  %init = (s32[], f32[8,4]{1,0}) tuple(%zero, %x)
  %loop = (s32[], f32[8,4]{1,0}) while(%init), condition=%outer_cond, body=%outer_body
  %y = f32[8,4]{1,0} get-tuple-element(%loop), index=1
  %moved = f32[8,4]{1,0} collective-permute(%y), channel_id=2, source_target_pairs={{0,1},{1,2},{2,3},{3,0}}
  ROOT %copy = f32[8,4]{0,1} copy(%moved)
}
"""


def test_loops_within_loops_are_counted():
    """1, 3, 5, 7 in the inner loop, thrice: 12 times, over groups of 4 in a mesh of 4 x 2."""
    module = hlo.parse(LOOPS)
    permute, reduce = hlo.collectives(module, 8)
    assert (reduce.kind, reduce.count, reduce.bytes) == ("all-reduce", 12, 2 * 128 * 3 / 4)
    assert hlo.axes_of(reduce.group, {"data": 4, "tensor": 2}) == "data"
    assert (permute.kind, permute.count, permute.bytes) == ("collective-permute", 1, 128 * 4 / 8)
    assert permute.group == (0, 1, 2, 3)
    # In the loops the sum's result is in on-chip memory, marked S(1); its operand is read.
    counters = (12 + 3) * 3 * 4
    assert hlo.traffic(module) == 12 * 128 + counters + 2 * 128 + 2 * 128


CHAIN = """
%{name} (a: f32[8,4]) -> f32[32,4] {{
  %a = f32[8,4]{{1,0}} parameter(0)
  %gather = f32[32,4]{{1,0}} all-gather(%a), channel_id=7, replica_groups=[2,4]<=[8], x={{chain_id="0"}}
  ROOT %out = f32[32,4]{{1,0}} custom-call(%gather), custom_call_target="{target}"
}}
"""


def test_a_gather_that_goes_on_in_a_loop_is_counted_where_it_starts():
    """As a TPU's compiler writes it: begun before, a part in each turn, done after."""
    targets = {"begin": "AsyncCollectiveStart", "go_on": "Other", "end": "AsyncCollectiveDone"}
    text = LOOPS.replace(
        "\n%add (", "".join(CHAIN.format(name=n, target=t) for n, t in targets.items()) + "\n%add (", 1
    )
    line = "  %{name}.1 = f32[32,4]{{1,0}} fusion(%x), kind=kCustom, calls=%{name}\n"
    text = text.replace("  %sum = f32[8,4]", line.format(name="go_on") + "  %sum = f32[8,4]")
    text = text.replace("  %zero = s32[]", line.format(name="begin") + line.format(name="end") + "  %zero = s32[]")
    gathers = [c for c in hlo.collectives(hlo.parse(text), 8) if c.kind == "all-gather"]
    assert [(c.count, c.bytes) for c in gathers] == [(1, 32 * 4 * 4 * 3 / 4)]


@pytest.mark.parametrize(
    ("text", "group"),
    [
        ("replica_groups=mesh['a'=2,'b'=4] {'b'}", (0, 1, 2, 3)),
        ("replica_groups=mesh['a'=2,'b'=4] {'a'}", (0, 4)),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", (0, 4)),
        ("replica_groups={{0,2},{1,3}}", (0, 2)),
        ("", tuple(range(8))),
    ],
)
def test_groups_in_all_their_forms(text, group):
    assert hlo._group(text, 8) == group


# ----------------------------------------------------------------------------------- layouts


def gpt3(size, *pairs):
    return budget.finalize(config.load(f"{ROOT}/experiments/gpt3.py:{size}", pairs), reads=False)


def test_a_layout_fits_and_says_why():
    topology = Topology("v5p:4x4x4")
    found = layout.choices(gpt3("6.7b"), topology)
    # 6.7B in float32 with two moments is 80 GB, gradients 27: no layout of 64 chips can be smaller.
    assert 107e9 / 64 < found[0].state_bytes < 95 * 2**30
    fastest = min(x.step_seconds for x in found)
    assert found[0].step_seconds <= 1.03 * fastest
    # And 1,024 sequences of 6 N FLOPs a token at 64 peaks take no less.
    assert fastest >= 6 * 6.6e9 * 1024 * 2048 / 64 / 459e12
    assert "bound by" in layout.why(found[0], topology)


def test_13b_is_laid_out_although_5140_divides_by_little():
    best = layout.choices(gpt3("13b"), Topology("v5p:4x4x8"))[0]
    assert best.state_bytes < 40 * 2**30


def test_what_is_too_large_has_remedies_of_different_kinds():
    topology = Topology("v5e:16x16")
    frozen = gpt3("175b")
    assert not layout.choices(frozen, topology)
    found = layout.remedies(frozen, topology)
    assert len(found) == 3 and len({r.text for r in found}) == 3
    for r in found:
        assert r.layout.bytes <= 0.92 * 16 * 2**30
        if r.topology == topology:  # as the estimate of the very config that it advises
            again = layout.estimate(layout.changed(frozen, r.overrides), dict(r.layout.mesh), topology)
            assert again.bytes == pytest.approx(r.layout.bytes)


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (["--topology=v5x:4x4"], "did you mean 'v5"),
        (["--topology=v5e:4"], "chips along 2 dimensions, as v5e:4x4"),
        (["--topology=v5e:4x4", "--slices=0"], "--slices=0: must be at least 1"),
        (["--topology=v5e:4x4", "--sweep=sweeps/demo.py"], "give --config=experiments/NAME.py"),
    ],
)
def test_mistakes_end_in_one_line(args, text):
    wrong = bigmodel("compile", "--config=experiments/gpt3.py:125m", *args)
    assert wrong.returncode == 2 and text in wrong.stderr and wrong.stderr.count("\n") == 1, wrong.stderr


def test_without_libtpu_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'jax\[tpu\]'"):
        aot.devices(Topology("v5e:2x2"))


def test_plan_lays_out_and_says_what_to_prove():
    out = bigmodel("plan", "--topology=v5p:8x8x8", "--config=experiments/gpt3.py:175b")
    assert out.returncode == 0 and "bigmodel compile --config=experiments/gpt3.py:175b" in out.stdout, out.stderr
    wrong = bigmodel("plan", "--config=experiments/gpt3.py:175b")
    assert wrong.returncode == 2 and "--law=FIT.JSON" in wrong.stderr


# ---------------------------------------------------------------------------- published names

KEYS = {"itemsize", "layers", "entering", "kept", "block", "ends", "logits", "heads", "length"}


def defaults(family, **changes):
    cfg = budget.base(family, "text")
    cfg.train.tokens_per_param = 20.0
    cfg.train.batch_size = 64
    for key, value in changes.items():
        cfg.model[key] = value
    for key in cfg.data:
        if key in cfg.model:
            cfg.data[key] = cfg.model[key]
    return budget.finalize(cfg, reads=False)


@pytest.mark.parametrize("family", ["decoder", "bert", "encdec", "recurrent", "mlp"])
def test_every_family_says_what_its_activations_fill(family):
    """More examples, and what is kept rather than computed again, take more; dividing examples divides them."""
    cfg = defaults(family)
    assert models.family(family).footprint(cfg.model).keys() == KEYS
    where, one = Topology("v5e:2x2"), {"slices": 1, "data": 1, "fsdp": 4, "sequence": 1, "tensor": 1}

    def activations(**how):
        return layout.estimate(layout.changed(cfg, how), one, where).activation_bytes

    assert 0 < activations(**{"run.remat": "full"}) < activations(**{"run.remat": "none"})
    assert activations() < activations(**{"train.batch_size": 128})
    assert activations(**{"train.microbatch": 32}) < activations()
    assert all(
        (m["tensor"], m["sequence"]) == (1, 1) or family not in ("recurrent", "mlp") for m in layout.meshes(cfg, where)
    )


def test_the_estimates_of_a_decoder_are_those_that_were_set_by_compiled_programs():
    best = layout.smallest(gpt3("175b"), Topology("v5e:16x16"))
    assert "about 10.30 GiB of state and gradients and 42.42 of activations" in layout.why(best, Topology("v5e:16x16"))


def test_scores_that_are_made_whole_are_counted():
    """Gopher's relative positions: XLA needed 34.82 GiB a chip for what 5.25 were estimated without them."""
    cfg, _ = verb.frozen("gopher-44m", [])
    cfg = layout.changed(cfg, {"run.remat": "full"})
    found = layout.estimate(cfg, {"slices": 1, "data": 1, "fsdp": 4, "sequence": 1, "tensor": 1}, Topology("v6e:2x2"))
    assert found.bytes / 2**30 == pytest.approx(34.82, rel=0.05)


@pytest.mark.parametrize("name", ["gpt3-2.7b", "bert-tiny", "t5-3b", "lstm-ptb-large"])
def test_the_smallest_topology_fits_and_a_smaller_one_does_not(name):
    cfg, assumed = verb.frozen(name, [])
    assert f"batch {cfg.train.batch_size} (" in assumed and "no data are read" in assumed
    found, where = published.smallest(cfg, ("none", "dots", "full"))
    assert found[0].bytes <= layout.USABLE * where.chip.hbm
    sizes = [(t.chips * t.chip.hbm, t.chips) for t in published.usual()]
    assert sizes == sorted(sizes)
    smaller = published.usual()[: published.usual().index(where)]
    assert not any(layout.choices(cfg, t) for t in smaller)


@pytest.mark.slow
def test_every_published_name_is_in_the_table_with_a_topology_or_a_refusal():
    rows = pod_published.read()
    assert list(rows) == pod_published.names() and len(rows) >= 150
    for name, row in rows.items():
        cfg, _ = verb.frozen(name, [])
        assert int(row["batch"]) == cfg.train.batch_size
        if row["status"] == "refused":
            assert "The cheapest remedies: " in row["refusal"]
        elif row["status"] == "estimated":
            where = published.smallest(cfg, ("none", "dots", "full"))[1]
            assert (row["topology"], int(row["slices"])) == (where.name, where.slices)
        else:
            hbm = Topology(row["topology"], int(row["slices"])).chip.hbm
            assert 0 < int(row["peak_bytes"]) <= hbm and len(row["program_hash"]) == 16


def test_a_name_is_a_published_model_or_an_experiment_of_ours():
    assert verb.frozen("gpt3-1.3b", [])[1] and verb.frozen("gpt3:125m", [])[1] == ""
    assert verb.frozen("gpt", [])[0].family == "decoder"
    with pytest.raises(UsageError, match="did you mean 'gpt3-13b'"):
        verb.frozen("gpt3-13x", [])


def test_plan_finds_the_smallest_topology():
    out = bigmodel("plan", "--topology=auto", "--config=gpt3-1.3b")
    assert out.returncode == 0 and "--config=gpt3-1.3b --topology=v5p:2x2x1" in out.stdout, out.stderr


def test_batches_are_the_published_ones_or_by_rule():
    examples = {n: verb.frozen(n, [])[0].train.batch_size for n in ("gpt3-125m", "chinchilla-44m", "transformer-base")}
    assert examples == {"gpt3-125m": 256, "chinchilla-44m": 256, "transformer-base": 64}
    cfg, assumed = verb.frozen("gpt2", [("train.batch_size", "24")])
    assert cfg.train.batch_size == 24 and "(as given)" in assumed


def test_what_fits_nowhere_is_refused_with_the_smallest_that_would():
    cfg, _ = verb.frozen("gpt3-175b", [])
    error = aot.DoesNotFit(3e12, 16e9)
    text = verb.refusal(cfg, Topology("v5e:2x2"), error)
    assert "--topology=v5p:4x8x8" in text
    huge, _ = verb.frozen("gpt2", [("train.batch_size", "8192000")])
    with pytest.raises(UsageError, match=r"GiB too many\. The cheapest remedies: "):
        verb.proved(huge, set(), None, None, lambda line: None)


def test_needs_in_tebibytes_are_read():
    class Lowered:
        def compile(self):
            raise RuntimeError(
                "RESOURCE_EXHAUSTED: required for HLO temporaries (2.60T) exceeds available HBM (15.75G)."
            )

    with pytest.raises(aot.DoesNotFit) as e:
        aot.compile_step(Lowered())
    assert (e.value.needed, e.value.available) == (2.6 * 2**40, 15.75 * 2**30)


@pytest.mark.parametrize("remat", ["dots", "full"])
def test_dropout_is_computed_again(remat):
    import jax

    def text(dropout):
        cfg = defaults("bert", width=32, depth=2, num_heads=2, seq_len=16, vocab_size=64, dropout=dropout)
        cfg = layout.changed(cfg, {"run.remat": remat})
        return aot.lower(cfg, sharding.make_mesh(cfg.run.mesh, jax.devices()[:1])).as_text()

    assert len(text(0.1)) > len(text(0.0))


# -------------------------------------------------------------------------------------- TPUs

SMALL = [
    "--config=experiments/gpt3.py:125m", "--config.model.depth=2", "--config.model.width=256",
    "--config.model.num_heads=2", "--config.model.head_dim=128", "--config.train.batch_size=16",
    "--config.model.vocab_size=512", "--no-cache",
]  # fmt: skip


@pytest.mark.tpu
def test_a_report(tmp_path):
    out = bigmodel("compile", *SMALL, "--topology=v5e:2x2", f"--out={tmp_path}/small", "--save", timeout=600)
    assert out.returncode == 0, out.stderr
    r = json.loads((tmp_path / "small.json").read_text())
    head = json.loads((tmp_path / "small.executable").open("rb").readline())
    pairs = [flag.removeprefix("--config.").split("=", 1) for flag in r["executable"]["flags"].split()]
    cfg = aot.frozen(config.load(SMALL[0].partition("=")[2], pairs))
    mesh = sharding.make_mesh(cfg.run.mesh, aot.devices(Topology("v5e:2x2")))
    made = executables.made_for(program.static_part(cfg), mesh)
    assert head.items() >= made.items() and head.keys() - made.keys() == {"sha256"}
    assert cfg.run.executable.endswith(".executable")
    assert r["chips"] == 4 and r["bytes"]["arguments"] > 0 and r["roofline"]["step"] > 0
    assert (tmp_path / "small.png").stat().st_size > 5000


@pytest.mark.tpu
def test_fsdp_on_tpus_gathers_what_the_formula_says(tmp_path):
    mesh = ["--config.run.mesh.data=1", "--config.run.mesh.fsdp=4", "--config.run.remat=full"]
    out = bigmodel("compile", *SMALL, *mesh, "--topology=v5e:2x2", "--json", timeout=600)
    r = json.loads(out.stdout)
    (row,) = [x for x in r["collectives"] if x["kind"] == "all-gather"]
    # Blocks in bfloat16: once forward, and backward once or, in other layouts, some of attention's matrices twice.
    least = 2 * 2 * 2 * 12 * 256 * 256 * 3 / 4
    tables = 4 * (2048 + 2 * 512) * 256 * 3 / 4  # of positions and tokens, at most in float32
    assert least <= row["bytes"] <= 1.25 * least + tables


@pytest.mark.tpu
def test_175b_on_256_v5e_is_refused_with_remedies():
    began = time.time()
    out = bigmodel("compile", "--config=experiments/gpt3.py:175b", "--topology=v5e:16x16", "--no-cache")
    assert out.returncode == 2 and out.stderr.count("\n") == 1
    assert "GiB too many. The cheapest remedies: (1)" in out.stderr and "(3)" in out.stderr
    print(f"{time.time() - began:.1f} s")


@pytest.mark.tpu
def test_ten_rows_of_the_table_are_compiled_again_to_the_same_program_and_bytes():
    from importlib.metadata import version

    rows = pod_published.sample(10, seed=0)
    if (rows[0]["jax"], rows[0]["libtpu"]) != (jax_version(), version("libtpu")):
        pytest.skip(f"the table is of jax {rows[0]['jax']} and libtpu {rows[0]['libtpu']}")
    verb.use_host()
    for row in rows:
        found = pod_published.again(row)
        assert found == {key: row[key] for key in found}, row["name"]


def jax_version():
    import jax

    return jax.__version__
