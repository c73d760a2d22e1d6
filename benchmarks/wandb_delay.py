"""What W&B costs a run: seconds from the start of the process to its first metrics row, and to its end.

    python benchmarks/wandb_delay.py [--repeats 3]

An MLP on the digits, 10 steps, compilations cached. "no network" is an empty network namespace where we may
make one, else proxies to a closed port.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
# The run, telling when its first row came; and its view's process, to be waited for.
RUN = """
import sys, time
from bigmodel.cli import main
from bigmodel.run import record, view
add, close = record.Rows.add, view.View.close
def first(self, row):
    if row["step"] == 1:
        print("row", time.time(), flush=True)
    add(self, row)
def last(self, *args, **kwargs):
    print("view", self.child.pid if self.child else 0, flush=True)
    close(self, *args, **kwargs)
record.Rows.add, view.View.close = first, last
sys.exit(main.main(sys.argv[1:]))
"""
CUT = ["unshare", "-n"]
if not shutil.which("unshare") or subprocess.run([*CUT, "true"], capture_output=True).returncode:
    CUT = ["env", *(f"{name}=http://127.0.0.1:9" for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"))]
NO_KEY = {"WANDB_API_KEY": "", "NETRC": "/nonexistent"}
CASES = {
    "off": ("off", [], NO_KEY),
    "offline": ("offline", [], NO_KEY),
    "online, no key, no network": ("online", CUT, NO_KEY),
    "online, wrong key, no network": ("online", CUT, {"WANDB_API_KEY": "0" * 40}),
}


def measure(mode, prefix, env, runs):
    """(seconds to the first row, seconds to the end)"""
    command = ["train", "--config=experiments/digits.py", f"--config.run.wandb={mode}", f"--runs={runs}"]
    command += ["--config.model.width=8", "--config.train.tokens=0", "--config.train.steps=10"]
    began = time.time()
    out = subprocess.run(
        [*prefix, sys.executable, "-c", RUN, *command],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", **env},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    ended = time.time()
    view = int(out[out.index("view") + 1])
    while view and Path(f"/proc/{view}").exists():  # so that it isn't at work during the next run
        time.sleep(0.1)
    return float(out[out.index("row") + 1]) - began, ended - began


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args().repeats
    seconds = {name: [] for name in CASES}
    with tempfile.TemporaryDirectory() as folder:
        measure(*CASES["off"], f"{folder}/warm")  # fills the compilation cache
        for repeat in range(repeats):
            for number, (name, case) in enumerate(CASES.items()):
                seconds[name].append(measure(*case, f"{folder}/{repeat}-{number}"))
    base = [statistics.median(column) for column in zip(*seconds["off"], strict=True)]
    print(f"median of {repeats}, in seconds     first row  (delay)      end  (delay)")
    for name, measured in seconds.items():
        row, end = (statistics.median(column) for column in zip(*measured, strict=True))
        print(f"{name:31}  {row:7.2f}  {row - base[0]:+7.2f}  {end:7.2f}  {end - base[1]:+7.2f}")


if __name__ == "__main__":
    main()
