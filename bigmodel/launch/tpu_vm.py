"""Cloud TPU VMs: queued resources, and a start script for every host of their slices. Never executed on Cloud TPU.

Each slice goes through all rows, and claims in the bucket decide which slice trains which. A slice deletes itself when
no row is left for it, so that nothing has to stay connected.
"""

import shlex

from bigmodel.errors import UsageError
from bigmodel.launch import Job, refuse_unprintable
from bigmodel.launch.tpus import PYTHON, slice_of

CLIENT = "gcloud"
PROGRAM = "bigmodel"
COMMAND = "bash"
SCRIPT = """\
#!/bin/bash
# Asks for {job.most} slices of {slice.accelerator}. Written by `bigmodel launch`; edit it at will, and run it again,
# from the checkout, to continue: slices that were preempted are asked for again.
set -e
here=$(dirname "$0")
python3 -m pip wheel --quiet --no-deps --wheel-dir="$here" .
gcloud storage cp "$here"/bigmodel-*.whl requirements.lock {stored}/
for slice in $(seq 0 {last}); do
  name={name}-$slice
  state=$(gcloud compute tpus queued-resources describe "$name" --zone={zone} --format='value(state.state)' || true)
  case "$state" in
    '') ;;
    FAILED | SUSPENDED) gcloud compute tpus queued-resources delete "$name" --zone={zone} --force --quiet ;;
    *) echo "$name: $state; left as it is"; continue ;;
  esac
  gcloud compute tpus queued-resources create "$name" --zone={zone} --node-id="$name" --spot --async \\
    --accelerator-type={slice.accelerator} --runtime-version={slice.runtime} \\
    --metadata="bigmodel-name=$name,bigmodel-slice=$slice" --metadata-from-file=startup-script="$here/start.sh"
done
"""
START = """\
#!/bin/bash
# Run as root by every host of a slice, at each of its starts. Written by `bigmodel launch`.
export HOME=${{HOME:-/root}}
attribute() {{ curl --silent --fail --header 'Metadata-Flavor: Google' \\
  "http://metadata.google.internal/computeMetadata/v1/instance/attributes/$1"; }}
name=$(attribute bigmodel-name) slice=$(attribute bigmodel-slice) process=$(attribute agent-worker-number)
# Either host,host,... or name:port:address,...
IFS=, read -ra hosts <<< "$(attribute worker-network-endpoints)"
install() {{ (
  set -e
  mkdir -p ~/source && cd ~/source
  gcloud storage cp {stored}/* .
{python}
  ~/bigmodel/bin/python -m pip install -c requirements.lock "$(echo ./bigmodel-*.whl)[tpu]"
) }}
install || {{ echo "bigmodel: $name: the installation failed; the slice stays, see above"; exit 1; }}
PATH=~/bigmodel/bin:$PATH
ids=({ids})
# Every host takes the rows in the same order; slices begin at different ones. A row of another slice ends with 75.
# After 20 rounds even the claim of a slice that is gone (15 minutes) has been taken over.
for round in $(seq 20); do
  again=
  for id in "${{ids[@]:slice}}" "${{ids[@]:0:slice}}"; do
    {job.worker} --run="$id"{several}
    code=$?
    echo "round $round, row $id: code $code"
    if [ $code -eq 75 ] || [ $code -gt 128 ]; then again=1; fi
  done
  [ "$again" ] || break
  sleep 60
done
if [ "$process" = 0 ]; then
  gcloud compute tpus queued-resources delete "$name" --zone={zone} --force --quiet --async
fi
"""


def render(job: Job) -> dict[str, str]:
    slice = slice_of("tpu-vm", job)
    if job.folder.startswith("s3://"):
        raise UsageError("launch --engine=tpu-vm: a TPU VM has the keys of gs:// alone; use a bucket there, or gke")
    if job.slices > 1:
        raise UsageError("launch --engine=tpu-vm: one slice a row; rows of several slices need --engine=gke")
    if not job.zone:
        raise UsageError("launch --engine=tpu-vm: where? --zone=us-east5-a, one in which you have quota")
    refuse_unprintable("tpu-vm", job.folder, job.zone, job.worker)
    name = job.name.lower()[:50].rstrip("-")
    zone, stored = shlex.quote(job.zone), shlex.quote(f"{job.folder}/launch")
    python = PYTHON.replace("\n", "\n  ").rstrip()
    several = f' --coordinator="${{hosts[0]##*:}}":8476 --processes={slice.hosts} --process="$process"'
    several = several if slice.hosts > 1 else ""
    known = dict(job=job, slice=slice, name=name, zone=zone, stored=stored, last=job.most - 1, several=several)
    known |= dict(ids=" ".join(job.ids), python="  " + python)
    return {"launch.sh": SCRIPT.format(**known), "start.sh": START.format(**known)}
