"""16 tiny runs: one `sweep run` against 16 `train` processes, wall time, same machine, same run.

    python benchmarks/sweep_vs_processes.py [--repeats 3]

Both write the same files and log to W&B offline; both find their compilations cached. The 16 rows are
2 widths x 2 depths x 4 learning rates of an MLP on the digits, 100 steps each.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
SWEEP = """
from bigmodel import sweep
CONFIG = "experiments/digits.py"
def get_sweep():
    shapes = sweep.ladder("mlp", widths=[16, 32], depths=[1, 2])
    return sweep.product(shapes, {"optim.lr": [1e-3, 2e-3, 4e-3, 8e-3], "train.steps": [100]})
"""


def command(*args):
    began = time.perf_counter()
    subprocess.run([sys.executable, "-m", "bigmodel", *map(str, args)], cwd=ROOT, check=True, capture_output=True)
    return time.perf_counter() - began


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args().repeats
    ratios = []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "tiny.py"
        file.write_text(SWEEP)
        command("sweep", "run", file, f"--runs={folder}/warm")  # compilations into the cache
        configs = sorted(Path(folder, "warm/tiny").glob("*/config.json"))
        assert len(configs) == 16
        for i in range(repeats):
            together = command("sweep", "run", file, f"--runs={folder}/a{i}")
            apart = sum(command("train", c, f"--runs={folder}/b{i}") for c in configs)
            for c in configs:
                a = json.loads(Path(folder, f"a{i}/tiny", c.parent.name, "result.json").read_text())
                b = json.loads(Path(folder, f"b{i}", c.parent.name, "result.json").read_text())
                assert a["loss"] == b["loss"], "not the same work"
            shutil.rmtree(f"{folder}/b{i}")
            ratios.append(apart / together)
            print(f"one sweep {together:.1f} s, 16 processes {apart:.1f} s, ratio {ratios[-1]:.2f}", flush=True)
    print(f"median ratio {statistics.median(ratios):.2f}")


if __name__ == "__main__":
    main()
