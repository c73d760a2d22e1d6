"""This machine: a shell script that runs some rows at once, each process of a row beside the others."""

from __future__ import annotations

from bigmodel.launch import Job, quoted

SCRIPT = """\
#!/bin/bash
# Rows of {shown}, {most} at a time. Written by `bigmodel launch`; edit it at will, and run it again to continue.
# A row that asks for it (75), or whose processes were killed (over 128), is started again, 20 times at most.
# Ends with 0 if every row is done, with 75 if running it again continues some, and with 1 if one can't be trained.
row() {{
  for attempt in $(seq 20); do
    port=$((20000 + RANDOM % 20000))
    pids=()
    for process in $(seq 0 $(({processes} - 1))); do
      {worker} --run="$1"{several} >> {home}/"$1".log 2>&1 &
      pids+=($!)
    done
    code=0 again=0 never=0
    for pid in "${{pids[@]}}"; do
      wait "$pid"; code=$?
      if [ "$code" -eq 75 ] || [ "$code" -gt 128 ]; then again=75; elif [ "$code" -ne 0 ]; then never=$code; fi
    done
    # One that failed for good counts more than those that it took down.
    code=$((never ? never : again))
    if [ "$never" -ne 0 ] || [ "$again" -eq 0 ]; then break; fi
  done
  echo "row $1: code $code"
}}
export -f row
printf '%s\\n' {ids} | xargs -P {most} -I ID bash -c 'row ID' | {{
  code=0
  while read -r line; do
    echo "$line"
    case "$line" in
      *": code 0") ;;
      *": code 75") code=$((code ? code : 75)) ;;
      *) code=1 ;;
    esac
  done
  exit "$code"
}}
"""


def render(job: Job) -> dict[str, str]:
    several = f' --coordinator=127.0.0.1:"$port" --processes={job.processes} --process="$process"'
    return {
        "run.sh": SCRIPT.format(
            shown=repr(job.folder),  # on one line, whatever the name
            home=quoted(job.home),
            most=job.most,
            processes=job.processes,
            worker=job.worker,
            several=several if job.processes > 1 else "",
            ids=" ".join(job.ids),
        )
    }


def command(job: Job, path: str) -> list[str]:
    return ["bash", path]
