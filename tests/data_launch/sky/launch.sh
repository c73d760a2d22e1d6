#!/bin/bash
# Hands every row to SkyPilot, which keeps it running. Written by `bigmodel launch`; edit it at will.
set -e
for id in 0a 1b 5c; do
  sky jobs launch --yes --detach-run --name=bigmodel-x-"$id" --env RUN_ID="$id" "$(dirname "$0")/row.yaml"
done
