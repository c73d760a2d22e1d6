"""SkyPilot managed jobs on TPU slices: the YAML of one row, and a script that launches it for every row.

Checked against SkyPilot's schema, but never executed by us: we have no quota.
"""

import math
import re

from bigmodel.errors import UsageError, choose
from bigmodel.launch import Job, refuse_unprintable

# Chip -> SkyPilot's name; what that name counts per chip (chips, or cores, of which a chip has two); image.
CHIPS = {
    "v4": ("tpu-v4", 2, "tpu-ubuntu2204-base"),
    "v5e": ("tpu-v5litepod", 1, "v2-alpha-tpuv5-lite"),
    "v5p": ("tpu-v5p", 2, "v2-alpha-tpuv5"),
    "v6e": ("tpu-v6e", 1, "v2-alpha-tpuv6e"),
}

CLIENT = "sky"
COMMAND = "bash"
YAML = """\
# One row of {job.folder}, on one slice. Written by `bigmodel launch`; edit it at will.
name: {job.name}
resources:
  accelerators: {accelerators}
  accelerator_args:
    runtime_version: {runtime}
  use_spot: true
  job_recovery:
    strategy: FAILOVER
    # A worker that asks to be started again ends with 75, or by a signal.
    recover_on_exit_codes: [75, 134, 137, 143]
    max_restarts_on_errors: 100
num_nodes: 1
workdir: .
envs:
  RUN_ID: ""
setup: |
  set -e
  # The Python of these images may be 3.10. Where it is too old, uv brings one that bigmodel takes.
  if python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    python3 -m venv ~/bigmodel
  else
    python3 -m pip install --user uv
    python3 -m uv venv --clear --seed --python 3.12 ~/bigmodel
  fi
  ~/bigmodel/bin/python -m pip install -c requirements.lock -e '.[tpu]'
run: |
  PATH=~/bigmodel/bin:$PATH {job.worker} --run="$RUN_ID"
"""

LOOP = """\
#!/bin/bash
# Hands every row to SkyPilot, which keeps it running. Written by `bigmodel launch`; edit it at will.
set -e
for id in {ids}; do
  sky jobs launch --yes --detach-run --name={job.name}-$id --env RUN_ID=$id "$(dirname "$0")/row.yaml"
done
"""


def render(job: Job) -> dict[str, str]:
    if not job.topology:
        raise UsageError("launch --engine=sky: which slice? --topology=v5p:8x8x8")
    if not job.folder.startswith("gs://"):
        raise UsageError("launch --engine=sky: slices share no disk; --bucket=gs://... names the sweep's folder there")
    if job.slices > 1:
        raise UsageError("launch --engine=sky: one slice a row; several slices need GKE or queued resources")
    refuse_unprintable("sky", job.folder, job.worker)  # YAML has more line ends than the newline
    chip, _, shape = job.topology.partition(":")
    name, cores, runtime = CHIPS[choose("--topology", chip, CHIPS)]
    if not re.fullmatch(r"\d+(x\d+)+", shape):
        raise UsageError(f"--topology={job.topology!r}: chip and shape, as v5p:8x8x8")
    accelerators = f"{name}-{math.prod(int(n) for n in shape.split('x')) * cores}"
    text = YAML.format(job=job, accelerators=accelerators, runtime=runtime)
    return {"launch.sh": LOOP.format(job=job, ids=" ".join(job.ids)), "row.yaml": text}
