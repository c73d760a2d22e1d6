"""SkyPilot managed jobs on TPU slices: the YAML of one row, and a script that launches it for every row.

Checked against SkyPilot's schema, but never executed by us: we have no quota.
"""

from bigmodel.errors import UsageError
from bigmodel.launch import Job, refuse_unprintable
from bigmodel.launch.tpus import PYTHON, slice_of

CLIENT = "sky"
PROGRAM = "bigmodel"
COMMAND = "bash"
YAML = """\
# One row of {job.folder}, on one slice. Written by `bigmodel launch`; edit it at will.
name: {job.name}
resources:
  accelerators: tpu-{slice.accelerator}
  accelerator_args:
    runtime_version: {slice.runtime}
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
{python}
  {install}
run: |
  PATH=~/bigmodel/bin:$PATH {job.worker} --run="$RUN_ID"
"""

LOOP = """\
#!/bin/bash
# Hands every row to SkyPilot, which keeps it running. Written by `bigmodel launch`; edit it at will.
set -e
for id in {ids}; do
  sky jobs launch --yes --detach-run --name={job.name}-"$id" --env RUN_ID="$id" "$(dirname "$0")/row.yaml"
done
"""


def render(job: Job) -> dict[str, str]:
    slice = slice_of("sky", job)
    if job.slices > 1:
        raise UsageError("launch --engine=sky: one slice a row; rows of several slices need --engine=gke")
    refuse_unprintable("sky", job.folder, job.worker)  # YAML has more line ends than the newline
    python = "  " + PYTHON.replace("\n", "\n  ").rstrip()
    extras = "tpu,s3" if job.folder.startswith("s3://") else "tpu"
    install = f"~/bigmodel/bin/python -m pip install -c requirements.lock -e '.[{extras}]'"
    text = YAML.format(job=job, slice=slice, python=python, install=install)
    return {"launch.sh": LOOP.format(job=job, ids=" ".join(job.ids)), "row.yaml": text}
