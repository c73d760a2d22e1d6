#!/bin/bash
# Hands every row to the cluster of kubectl's context. Written by `bigmodel launch`; edit it at will, and run it again
# to continue: a row that failed is taken off and handed in again, one that is running stays as it is.
set -e
kubectl get jobsets --selector=bigmodel=bigmodel-x \
  --output='jsonpath={range .items[?(@.status.terminalState=="Failed")]}{.metadata.name}{"\n"}{end}' |
  xargs -r kubectl delete jobset
kubectl apply --filename="$(dirname "$0")/jobsets.yaml"
