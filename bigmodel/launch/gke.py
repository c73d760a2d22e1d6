"""GKE: a JobSet for every row, admitted by Kueue. Checked against both projects' schemas; never executed on a cluster.

What a worker's exit code means is said twice: a code that no restart mends fails the Job by its podFailurePolicy, and
the JobSet with it; any other failure, a lost node's too, restarts all of the row's processes.
"""

import json
import re
import shlex

from bigmodel.errors import UsageError
from bigmodel.launch import Job, refuse_unprintable
from bigmodel.launch.tpus import slice_of

CLIENT = "kubectl"
PROGRAM = "bigmodel"
COMMAND = "bash"
SCRIPT = """\
#!/bin/bash
# Hands every row to the cluster of kubectl's context. Written by `bigmodel launch`; edit it at will, and run it again
# to continue: a row that failed is taken off and handed in again, one that is running stays as it is.
set -e
kubectl get jobsets --selector=bigmodel={name} \\
  --output='jsonpath={{range .items[?(@.status.terminalState=="Failed")]}}{{.metadata.name}}{{"\\n"}}{{end}}' |
  xargs -r kubectl delete jobset
kubectl apply --filename="$(dirname "$0")/jobsets.yaml"
"""
JOBSET = """\
---
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: {name}-{id}
  labels:
    bigmodel: {name}
    kueue.x-k8s.io/queue-name: {queue}
  annotations:
    # One slice, one node pool.
    alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool
spec:
  failurePolicy:
    maxRestarts: 100
    rules:
    - name: permanent
      action: FailJobSet
      onJobFailureReasons: [PodFailurePolicy]
  replicatedJobs:
  - name: slice
    replicas: {job.slices}
    template:
      spec:
        parallelism: {slice.hosts}
        completions: {slice.hosts}
        backoffLimit: 0
        podFailurePolicy:
          rules:
          - action: Count
            onPodConditions:
            - type: DisruptionTarget
          # A worker that asks to be started again ends with 75, or by a signal.
          - action: FailJob
            onExitCodes:
              containerName: worker
              operator: NotIn
              values: [75, 134, 137, 143]
        template:
          spec:
            restartPolicy: Never
            # From SIGTERM on; runs save after their step.
            terminationGracePeriodSeconds: {job.notice}
            nodeSelector:
              cloud.google.com/gke-tpu-accelerator: {slice.gke}
              cloud.google.com/gke-tpu-topology: "{slice.shape}"
            containers:
            - name: worker
              image: {image}
              command: {command}
              resources:
                limits:
                  google.com/tpu: {slice.chips}
"""


def render(job: Job) -> dict[str, str]:
    slice = slice_of("gke", job)
    if not job.image:
        raise UsageError("launch --engine=gke: which image? --image=REGISTRY/bigmodel:TAG, built from the Dockerfile")
    refuse_unprintable("gke", job.folder, job.image, job.worker, more="\0")
    if not re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,251}[a-z0-9])?", job.queue):
        raise UsageError(f"launch --engine=gke: --queue={job.queue!r} is no name of a LocalQueue")
    if wrong := [i for i in job.ids if not re.fullmatch("[a-z0-9]{1,20}", i)]:
        raise UsageError(f"launch --engine=gke: a JobSet can't be named after the run id {wrong[0]!r}")
    name = job.name.lower()[:30].rstrip("-")  # names of pods, which end with the id and two indices, have at most 63
    rows = []
    for run_id in job.ids:
        words = [*shlex.split(job.worker), f"--run={run_id}"]
        command = json.dumps([word.replace("$", "$$") for word in words])  # Kubernetes expands $(NAME)
        text = JOBSET.format(
            job=job, slice=slice, name=name, id=run_id, queue=json.dumps(job.queue), image=json.dumps(job.image),
            command=command,
        )  # fmt: skip
        rows.append(text)
    head = "# One JobSet a row. Written by `bigmodel launch`; edit it at will.\n"
    return {"launch.sh": SCRIPT.format(name=name), "jobsets.yaml": head + "".join(rows)}
