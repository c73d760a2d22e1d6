"""This machine: a shell script that runs some rows at once, each process of a row beside the others."""

from __future__ import annotations

from bigmodel.launch import Job, quoted

SCRIPT = """\
#!/bin/bash
# Rows of {folder}, {most} at a time. Written by `bigmodel launch`; edit it at will, and run it again to continue.
# A row that asks for it (75), or whose processes were killed (over 128), is started again, 20 times at most.
row() {{
  for attempt in $(seq 20); do
    port=$((20000 + RANDOM % 20000))
    pids=()
    for process in $(seq 0 $(({processes} - 1))); do
      {worker} --index="$1"{several} >> {folder}/launch/row-"$1".log 2>&1 &
      pids+=($!)
    done
    code=0 again=0 never=0
    for pid in "${{pids[@]}}"; do
      wait "$pid"; code=$?
      if [ "$code" -eq 75 ] || [ "$code" -gt 128 ]; then again=$code; elif [ "$code" -ne 0 ]; then never=$code; fi
    done
    # One that failed for good counts more than those that it took down.
    code=$((never ? never : again))
    if [ "$never" -ne 0 ] || [ "$again" -eq 0 ]; then break; fi
  done
  echo "row $1: code $code"
  return "$code"
}}
export -f row
printf '%s\\n' {indices} | xargs -P {most} -I INDEX bash -c 'row INDEX'
"""


def render(job: Job) -> dict[str, str]:
    several = f' --coordinator=127.0.0.1:"$port" --processes={job.processes} --process="$process"'
    return {
        "run.sh": SCRIPT.format(
            folder=quoted(job.folder),
            most=job.most,
            processes=job.processes,
            worker=job.worker,
            several=several if job.processes > 1 else "",
            indices=" ".join(map(str, job.indices)),
        )
    }


def command(job: Job, path: str) -> list[str]:
    return ["bash", path]
