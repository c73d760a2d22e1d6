"""Losses, run ids and fits are the stored ones of tests/golden; its make.py says when those may be made anew."""

import json

import pytest
from golden import make

STORED = {name: json.loads((make.HERE / f"{name}.json").read_text()) for name in ("losses", "ids", "fits")}
REL = 1e-5  # machines differ in the last digits
SLOW_LOSSES = (
    "decoder-mup-accumulated", "encdec-prefix", "encdec-translate-dropout", "mlp-classify-dropout", "recurrent-dropout",
    "decoder-infill", "decoder-gqa-rope-swiglu", "decoder-completep-muon", "bert-masked-next", "encdec-span",
)  # fmt: skip
QUICK_IDS = ["demo", "digits", "mlp", "sentiment", "transfer_recurrent", "wsd"]
QUICK_FITS = ("besiroglu", "families-lstm", "isoflop-chinchilla", "isoflop-frontier")
EIGHT = [name for name, case in STORED["losses"].items() if "on_eight" in case]
QUICK_EIGHT = ["bert-masked", "decoder-causal"]


def marked(names, slow):
    return [pytest.param(name, marks=pytest.mark.slow) if name in slow else name for name in names]


def same(want, have, rel=REL):
    found = make.differences(want, have, rel)
    assert not found, "\n".join(found[:20])


@pytest.fixture(scope="module")
def golden_data(tmp_path_factory):
    root = tmp_path_factory.mktemp("golden")
    make.prepare(root)
    return root


@pytest.mark.parametrize("name", marked(STORED["losses"], SLOW_LOSSES))
def test_losses_are_the_stored_ones(name, golden_data, tmp_path):
    case = STORED["losses"][name]
    found = make.run(case, golden_data, tmp_path)
    same({key: case[key] for key in found}, found)
    if "resumed" in found:
        assert found["resumed"] == {key: found[key] for key in ("losses", "eval")}


def test_every_family_and_objective_has_a_golden_case():
    from bigmodel import models

    families = {case["family"] for case in STORED["losses"].values()}
    assert families == set(models.names())
    said = {(c["family"], c["overrides"].get("model.objective", "")) for c in STORED["losses"].values()}
    assert {("decoder", "prefix"), ("decoder", "infill"), ("bert", "masked_next"), ("bert", "classify")} <= said
    assert {("encdec", "span"), ("encdec", "prefix"), ("mlp", "regress")} <= said
    for name, case in json.loads(json.dumps(make.cases())).items():
        assert case == {key: STORED["losses"][name][key] for key in case}, name


@pytest.mark.parametrize("names", [QUICK_EIGHT, pytest.param(EIGHT, marks=pytest.mark.slow)], ids=["quick", "all"])
def test_losses_on_eight_devices_are_the_stored_ones(names, tmp_path):
    path = tmp_path / "cases.json"
    path.write_text(json.dumps({name: STORED["losses"][name] for name in names}))
    same({name: STORED["losses"][name]["on_eight"] for name in names}, make.eight(path, tmp_path / "out.json"))


# -------------------------------------------------------------------------------------- ids


@pytest.mark.parametrize("names", [QUICK_IDS, pytest.param([], marks=pytest.mark.slow)], ids=["quick", "all"])
def test_run_ids_of_the_sweeps_are_the_stored_ones(names, tmp_path):
    """Also the way 23bee87 made them, which later ways have to find; and those of the published studies."""
    make.stubs(tmp_path)
    planned = make.plans(tmp_path, names)
    assert len(planned) == len(names or STORED["ids"]["sweeps"])
    same({name: STORED["ids"]["sweeps"][name] for name in planned}, make.ids(planned))

    old = json.loads((make.HERE / "ids-23bee87.json").read_text())["sweeps"]
    then = {n: [make.id_of_23bee87(row.config) for row in rows] for n, rows in planned.items() if n in old}
    then.pop("demo", None)  # its rows are others since
    same({n: old[n] for n in then}, then)

    found = make.studies(planned)
    ours = [name for name in found if name in names or not names]
    assert ours
    same({name: STORED["ids"]["studies"][name] for name in ours}, {name: found[name] for name in ours})


# ------------------------------------------------------------------------------------- fits


@pytest.mark.parametrize("name", marked(STORED["fits"], set(STORED["fits"]) - set(QUICK_FITS)))
def test_fits_are_the_stored_ones(name):
    path = make.points_of(name)
    if not path.is_file():
        pytest.skip(f"no {path}: the project ships no published runs")
    same(STORED["fits"][name], make.rounded(make.fit(name)))


def test_differences_are_found():
    want = {"losses": [1.0, 2.0], "eval": {"6": {"a": 3.0}}, "status": "done"}
    assert make.differences(want, {**want, "losses": [1.0, 2.00001]}, 1e-5) == []
    assert make.differences(want, {**want, "losses": [1.0, 2.0001]}, 1e-5) == ["losses[1]: 2.0 -> 2.0001 (5.0e-05)"]
    assert make.differences(want, {**want, "losses": [1.0]}, 1e-5) and make.differences(want, {"losses": [1.0, 2.0]}, 1)
    assert make.differences(want, {**want, "eval": {"6": {"a": float("nan")}}}, 1e-5)
    assert make.differences({"a": None, "b": "x"}, {"a": 1.0, "b": "y"}, 1) == ["a: None -> 1.0", "b: 'x' -> 'y'"]
