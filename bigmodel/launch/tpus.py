"""TPU slices by the names that SkyPilot, GKE and Cloud TPU give them, and what all engines of slices ask of a job."""

import math
import re
from dataclasses import dataclass

from bigmodel.errors import UsageError, choose
from bigmodel.launch import Job

# Chip -> Cloud TPU's type; what its number counts per chip (chips, or cores, of which a chip has two); image of its
# VMs; GKE's label; whether a host of eight chips exists. From cloud.google.com: tpu/docs, and
# kubernetes-engine/docs/concepts/tpus.
CHIPS = {
    "v4": ("v4", 2, "tpu-ubuntu2204-base", "tpu-v4-podslice", False),
    "v5e": ("v5litepod", 1, "v2-alpha-tpuv5-lite", "tpu-v5-lite-podslice", True),
    "v5p": ("v5p", 2, "v2-alpha-tpuv5", "tpu-v5p-slice", False),
    "v6e": ("v6e", 1, "v2-alpha-tpuv6e", "tpu-v6e-slice", True),
}

# Shell text: a virtual environment ~/bigmodel with a Python that bigmodel takes.
PYTHON = """\
# The Python of these images may be 3.10. Where it is too old, uv brings one that bigmodel takes.
if python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
  python3 -m venv ~/bigmodel
else
  python3 -m pip install --user uv
  python3 -m uv venv --clear --seed --python 3.12 ~/bigmodel
fi
"""


@dataclass(frozen=True)
class Slice:
    """One slice: its shape (8x8x8), hosts, chips of a host, and the names of CHIPS."""

    shape: str
    hosts: int
    chips: int
    accelerator: str
    runtime: str
    gke: str


def slice_of(engine: str, job: Job) -> Slice:
    """The slice of --topology, for a job whose folder all slices can reach.

    Raises:
      UsageError: no topology or none that is known; the folder is on a disk.
    """
    if not job.topology:
        raise UsageError(f"launch --engine={engine}: which slice? --topology=v5p:8x8x8")
    chip, _, shape = job.topology.partition(":")
    name, cores, runtime, label, eight = CHIPS[choose("--topology", chip, CHIPS)]
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)+", shape):
        raise UsageError(f"--topology={job.topology!r}: chip and shape, as v5p:8x8x8")
    if not (job.folder.startswith(("gs://", "s3://")) or job.rehearsed):
        text = "slices share no disk; --bucket=gs://... names the sweep's folder there"
        raise UsageError(f"launch --engine={engine}: {text}")
    total = math.prod(int(n) for n in shape.split("x"))
    chips = min(total, 8 if eight and total == 8 else 4)
    return Slice(shape, total // chips, chips, f"{name}-{total * cores}", runtime, label)
