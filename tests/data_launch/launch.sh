#!/bin/bash
# Hands every row to SkyPilot, which keeps it running. Written by `bigmodel launch`; edit it at will.
set -e
for index in 0 1 5; do
  sky jobs launch --yes --detach-run --name=bigmodel-x-$index --env INDEX=$index "$(dirname "$0")/row.yaml"
done
