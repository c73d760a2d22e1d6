"""This machine: a shell script that runs several rows at once, and all processes of a row together."""

import shlex

from bigmodel.launch import Job

CLIENT = "bash"
COMMAND = "bash"
SCRIPT = """\
#!/bin/bash
# Rows of {shown}, {job.most} at a time. Written by `bigmodel launch`; edit it at will, and run it again to continue.
# A row that asks for it (75), or whose processes were killed (over 128), is started again, 20 times at most.
# Ends with 0 if every row is done, with 75 if running it again continues some, and with 1 if one can't be trained.
row() {{
  for _ in $(seq 20); do
    port=$((20000 + RANDOM % 20000))
    pids=()
    for process in $(seq 0 $(({job.processes} - 1))); do
      {job.worker} --run="$1"{several} >> {home}/"$1".log 2>&1 &
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
printf '%s\\n' {ids} | xargs -P {job.most} -I ID bash -c 'row ID' | {{
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
    several = several if job.processes > 1 else ""
    shown = repr(job.folder)  # one line, for any name
    home, ids = shlex.quote(job.home), " ".join(job.ids)
    return {"run.sh": SCRIPT.format(job=job, shown=shown, home=home, several=several, ids=ids)}
