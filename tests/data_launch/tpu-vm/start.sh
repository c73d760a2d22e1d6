#!/bin/bash
# Run as root by every host of a slice, at each of its starts. Written by `bigmodel launch`.
export HOME=${HOME:-/root}
attribute() { curl --silent --fail --header 'Metadata-Flavor: Google' \
  "http://metadata.google.internal/computeMetadata/v1/instance/attributes/$1"; }
name=$(attribute bigmodel-name) slice=$(attribute bigmodel-slice) process=$(attribute agent-worker-number)
# Either host,host,... or name:port:address,...
IFS=, read -ra hosts <<< "$(attribute worker-network-endpoints)"
install() { (
  set -e
  mkdir -p ~/source && cd ~/source
  gcloud storage cp gs://mine/x/launch/* .
  # The Python of these images may be 3.10. Where it is too old, uv brings one that bigmodel takes.
  if python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    python3 -m venv ~/bigmodel
  else
    python3 -m pip install --user uv
    python3 -m uv venv --clear --seed --python 3.12 ~/bigmodel
  fi
  ~/bigmodel/bin/python -m pip install -c requirements.lock "$(echo ./bigmodel-*.whl)[tpu]"
) }
install || { echo "bigmodel: $name: the installation failed; the slice stays, see above"; exit 1; }
PATH=~/bigmodel/bin:$PATH
ids=(0a 1b 5c)
# Every host takes the rows in the same order; slices begin at different ones. A row of another slice ends with 75.
# After 20 rounds even the claim of a slice that is gone (15 minutes) has been taken over.
for round in $(seq 20); do
  again=
  for id in "${ids[@]:slice}" "${ids[@]:0:slice}"; do
    bigmodel worker gs://mine/x --run="$id" --coordinator="${hosts[0]##*:}":8476 --processes=2 --process="$process"
    code=$?
    echo "round $round, row $id: code $code"
    if [ $code -eq 75 ] || [ $code -gt 128 ]; then again=1; fi
  done
  [ "$again" ] || break
  sleep 60
done
if [ "$process" = 0 ]; then
  gcloud compute tpus queued-resources delete "$name" --zone=us-east5-a --force --quiet --async
fi
