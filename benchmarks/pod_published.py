"""Every published name on the smallest usual topology that fits: docs/pods/published.csv, a row a name.

    python benchmarks/pod_published.py                 compile what has no compiled row yet, the cheapest first
    python benchmarks/pod_published.py --estimates     only write rows by formula for names that have none
    python benchmarks/pod_published.py --summary       the table of docs/pods.md
    python benchmarks/pod_published.py --recheck=10    compile ten rows drawn with --seed again: equal hash and bytes

Rows are written as they are done, so that the same command continues. `status` says what a row is: compiled, estimated
(by formula alone: nothing of it was compiled), or refused, with the remedy. As `bigmodel compile NAME --topology=auto`.
"""

import argparse
import csv
import json
import random
import sys
import time
from pathlib import Path

from bigmodel import models
from bigmodel.cli import compile as verb
from bigmodel.errors import UsageError
from bigmodel.pods import aot, layout, published
from bigmodel.run import counts

TABLE = Path(__file__).parents[1] / "docs/pods/published.csv"
G = 2**30
FIELDS = (
    "name", "family", "status", "topology", "slices", "chips", "mesh", "remat", "microbatch", "batch", "units",
    "params",    "estimate_state_gib", "estimate_activations_gib", "arguments_bytes", "temporaries_bytes", "peak_bytes",
    "collectives_gb", "compute_s", "hbm_s", "ici_s", "dcn_s", "bound", "mfu_at_most", "compile_cpu_s", "compiles",
    "program_hash", "jax", "libtpu", "assumed", "refusal",
)  # fmt: skip
REMATS = ("none", "dots", "full")


def names() -> list[str]:
    return [name for f in models.names() for name in models.family(f).PUBLISHED]


def read() -> dict[str, dict[str, str]]:
    if not TABLE.exists():
        return {}
    with TABLE.open() as f:
        return {row["name"]: row for row in csv.DictReader(f)}


def write(rows: dict[str, dict]) -> None:
    part = TABLE.with_suffix(".part")
    with part.open("w", newline="") as f:
        out = csv.DictWriter(f, FIELDS, restval="", lineterminator="\n")
        out.writeheader()
        out.writerows(rows[name] for name in names() if name in rows)
    part.replace(TABLE)


def estimated(name: str) -> dict:
    cfg, assumed = verb.frozen(name, [])
    found, where = published.smallest(cfg, REMATS)
    row = {"name": name, "family": cfg.family, "status": "estimated", "assumed": assumed, "batch": cfg.train.batch_size}
    row |= {"params": counts.counts(cfg.family, cfg.model)[0], "units": models.family(cfg.family).units(cfg.model)}
    if not found:
        return compiled(name)  # is refused without being compiled
    best = found[0]
    return row | {
        "topology": where.name, "slices": where.slices, "chips": where.chips, "remat": best.remat,
        "mesh": json.dumps({k: v for k, v in best.mesh.items() if v > 1}), "microbatch": best.microbatch,
        "estimate_state_gib": f"{best.state_bytes / G:.3f}",
        "estimate_activations_gib": f"{best.activation_bytes / G:.3f}",
    }  # fmt: skip


def compiled(name: str) -> dict:
    cfg, assumed = verb.frozen(name, [])
    lines: list[str] = []
    began = time.process_time()
    row = {"name": name, "family": cfg.family, "assumed": assumed, "batch": cfg.train.batch_size}
    try:
        r = verb.proved(cfg, set(), None, None, lines.append)
    except UsageError as e:
        return row | {"status": "refused", "refusal": str(e), "compile_cpu_s": round(time.process_time() - began)}
    sums: dict[str, float] = {}
    for x in r["collectives"]:
        sums[x["kind"]] = sums.get(x["kind"], 0.0) + x["bytes"] / 1e9
    roof, b = r["roofline"], r["bytes"]
    return row | {
        "status": "compiled", "topology": r["topology"], "slices": r["slices"], "chips": r["chips"],
        "mesh": json.dumps(r["mesh"]), "remat": r["execution"]["remat"], "microbatch": r["microbatch"],
        "units": r["units_per_example"], "params": r["params"],
        "estimate_state_gib": f"{r['estimated']['state'] / G:.3f}",
        "estimate_activations_gib": f"{r['estimated']['activations'] / G:.3f}",
        "arguments_bytes": b["arguments"], "temporaries_bytes": b["temporaries"], "peak_bytes": b["peak"],
        "collectives_gb": json.dumps({k: float(f"{v:.4g}") for k, v in sums.items()}),
        **{f"{k}_s": f"{roof[k]:.4g}" for k in ("compute", "hbm", "ici", "dcn")},
        "bound": roof["bound_by"], "mfu_at_most": f"{roof['mfu_at_most']:.3f}",
        "compile_cpu_s": round(time.process_time() - began), "compiles": sum("  layout:" in line for line in lines),
        "program_hash": r["program_hash"], "jax": r["jax_version"], "libtpu": r["libtpu_version"],
    }  # fmt: skip


def again(row: dict[str, str], only_lower: bool = False) -> dict:
    """A compiled row's hash and bytes, from the mesh and layout that it names."""
    from bigmodel.ops import platforms, sharding

    cfg, _ = verb.frozen(row["name"], [])
    mesh = {axis: json.loads(row["mesh"]).get(axis, 1) for axis in sharding.AXES}
    how = {"run.remat": row["remat"], "train.microbatch": int(row["microbatch"])}
    cfg = layout.changed(cfg, how | {f"run.mesh.{axis}": n for axis, n in mesh.items()})
    where = layout.Topology(row["topology"], int(row["slices"]))
    devices = sharding.make_mesh(cfg.run.mesh, aot.devices(where))
    lowered = aot.lower(cfg, devices)
    found = {"program_hash": aot.program_hash(lowered, where, platforms.step_options(devices))}
    if not only_lower:
        m = aot.compile_step(lowered).memory_analysis()
        found |= {
            "arguments_bytes": str(m.argument_size_in_bytes),
            "temporaries_bytes": str(m.temp_size_in_bytes),
            "peak_bytes": str(m.peak_memory_in_bytes),
        }
    return found


def sample(k: int, seed: int) -> list[dict[str, str]]:
    return random.Random(seed).sample([r for r in read().values() if r["status"] == "compiled"], k)


def summary() -> None:
    rows = list(read().values())
    print("| family | names | compiled | estimated | refused | topologies (names) | XLA's bytes over the estimate's |")
    print("|---|---|---|---|---|---|---|")
    for family in dict.fromkeys(r["family"] for r in rows):
        mine = [r for r in rows if r["family"] == family]
        where: dict[str, int] = {}
        for r in mine:
            if r["topology"]:
                where[r["topology"]] = where.get(r["topology"], 0) + 1
        off = sorted(
            (int(r["arguments_bytes"]) + int(r["temporaries_bytes"]))
            / G
            / (float(r["estimate_state_gib"]) + float(r["estimate_activations_gib"]))
            for r in mine
            if r["status"] == "compiled"
        )
        states = [sum(r["status"] == s for r in mine) for s in ("compiled", "estimated", "refused")]
        text = ", ".join(f"{t} ({n})" for t, n in sorted(where.items(), key=lambda x: -x[1]))
        ratio = f"{off[0]:.2f} to {off[-1]:.2f}, median {off[len(off) // 2]:.2f}" if off else "-"
        print(f"| {family} | {len(mine)} | {' | '.join(map(str, states))} | {text} | {ratio} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--estimates", action="store_true")
    parser.add_argument("--summary", action="store_true")
    parser.add_argument("--recheck", type=int, default=0, metavar="K")
    parser.add_argument("--only-lower", action="store_true", help="of --recheck: compare the programs, compile nothing")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=1e9, help="start no compilation after these")
    parser.add_argument("--only", nargs="*", default=[], metavar="NAME")
    args = parser.parse_args()
    if args.summary:
        return summary()
    verb.use_host()
    if args.recheck:
        for row in sample(args.recheck, args.seed):
            found = again(row, args.only_lower)
            wrong = {k: (row[k], v) for k, v in found.items() if row[k] != v}
            equal = "equal program" if args.only_lower else "equal program and bytes"
            print(row["name"], f"differs: {wrong}" if wrong else equal, flush=True)
        return
    rows: dict[str, dict] = dict(read())
    for name in names():
        if name not in rows:
            rows[name] = estimated(name)
    write(rows)
    if args.estimates:
        return
    began = time.time()
    left = [r for r in rows.values() if r["status"] == "estimated" and (not args.only or r["name"] in args.only)]
    for row in sorted(left, key=lambda r: (args.only.index(r["name"]) if args.only else 0, int(r["chips"]))):
        if time.time() - began > args.seconds:
            break
        rows[row["name"]] = found = compiled(row["name"])
        write(rows)
        print(row["name"], found["status"], found.get("topology"), f"{found['compile_cpu_s']} CPU s", flush=True)


if __name__ == "__main__":
    sys.exit(main())
