#!/bin/bash
# Asks for 2 slices of v5p-16. Written by `bigmodel launch`; edit it at will, and run it again,
# from the checkout, to continue: slices that were preempted are asked for again.
set -e
here=$(dirname "$0")
python3 -m pip wheel --quiet --no-deps --wheel-dir="$here" .
gcloud storage cp "$here"/bigmodel-*.whl requirements.lock gs://mine/x/launch/
for slice in $(seq 0 1); do
  name=bigmodel-x-$slice
  state=$(gcloud compute tpus queued-resources describe "$name" --zone=us-east5-a --format='value(state.state)' || true)
  case "$state" in
    '') ;;
    FAILED | SUSPENDED) gcloud compute tpus queued-resources delete "$name" --zone=us-east5-a --force --quiet ;;
    *) echo "$name: $state; left as it is"; continue ;;
  esac
  gcloud compute tpus queued-resources create "$name" --zone=us-east5-a --node-id="$name" --spot --async \
    --accelerator-type=v5p-16 --runtime-version=v2-alpha-tpuv5 \
    --metadata="bigmodel-name=$name,bigmodel-slice=$slice" --metadata-from-file=startup-script="$here/start.sh"
done
