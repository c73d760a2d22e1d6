"""What a change changes: the golden cases of this tree and of another commit's, run here and compared to the bit.

    python benchmarks/identity.py COMMIT [losses] [ids] [fits] [--only=NAME,...] [--expect=NAME,...]

The commit's tree is unpacked into a temporary folder, and each tree measures in processes of its own (PYTHONPATH), by
its own tests/golden/make.py where it has one, else by this one. Both run this tree's cases, on one device and on eight,
and resumed from a checkpoint; both plan the sweeps that they have, and fit the points of tests/golden/make.py.

One line for each case, sweep or fit: whether it is the same to the bit, and the first difference where it is not.
`--expect` names what is meant to differ (`--expect=random`: all cases with random draws). Exit 1 if anything else does.
"""

import argparse
import fnmatch
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from golden import make  # noqa: E402


def unpacked(commit, folder):
    archive = subprocess.run(["git", "archive", commit], cwd=ROOT, check=True, capture_output=True).stdout
    subprocess.run(["tar", "x", "-C", str(folder)], input=archive, check=True)
    return folder


def measured(tree, what, cases, folder):
    """{name: values} as that tree has them, with all digits."""
    script = tree / "tests/golden/make.py"
    if not script.exists():
        script.parent.mkdir(parents=True, exist_ok=True)
        for name in ("make.py", "data.json"):
            (script.parent / name).write_bytes((make.HERE / name).read_bytes())
    found = {}
    for devices in (1, 8) if what == "losses" else (1,):
        out = folder / f"{tree.name}-{what}-{devices}.json"
        command = [sys.executable, str(script), what, f"--cases={cases}", f"--out={out}", f"--devices={devices}"]
        env = {**os.environ, "PYTHONPATH": str(tree), "BIGMODEL_POINTS": str(make.POINTS)}
        ran = subprocess.run(command, cwd=tree, env=env, capture_output=True, text=True)
        if ran.returncode:
            raise SystemExit(f"{tree}: {' '.join(command)}\n{ran.stderr[-3000:]}")
        part = json.loads(out.read_text())
        part = part["sweeps"] if what == "ids" else part
        found |= {name + (" on 8" if devices > 1 else ""): value for name, value in part.items()}
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commit")
    parser.add_argument("what", nargs="*", default=[], help="losses, ids, fits; none: all")
    parser.add_argument("--only", default="*", help="cases, as decoder-*,mlp-regress")
    parser.add_argument("--expect", default="", help="what is meant to differ")
    args = parser.parse_args()
    cases = {k: v for k, v in make.cases().items() if any(fnmatch.fnmatch(k, p) for p in args.only.split(","))}
    expected = set(args.expect.split(",")) - {""}
    if "random" in expected:
        expected |= {name for name, case in cases.items() if case["random"]}
    wrong = 0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cases.json"
        path.write_text(json.dumps(cases))
        other = Path(folder) / "commit"
        other.mkdir()
        unpacked(args.commit, other)
        print(f"| what | to the bit | first difference: {args.commit} -> here |\n|---|---|---|")
        for what in args.what or ("losses", "ids", "fits"):
            old, new = (measured(tree, what, path, Path(folder)) for tree in (other, ROOT))
            for name in sorted(old.keys() | new.keys()):
                if name not in old or name not in new:
                    print(f"| {what} {name} | only {'here' if name in new else 'there'} | |")
                    continue
                found = make.differences(old[name], new[name], 0.0)
                meant = name.removesuffix(" on 8") in expected
                wrong += bool(found) and not meant
                same = "yes" if not found else f"no, as expected: {len(found)}" if meant else f"NO: {len(found)} values"
                print(f"| {what} {name} | {same} | {found[0] if found else ''} |", flush=True)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
