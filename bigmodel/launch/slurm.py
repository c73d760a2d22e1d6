"""Slurm: one sbatch array, a task a row."""

from __future__ import annotations

from bigmodel.launch import Job, refuse_unprintable

SCRIPT = """\
#!/bin/bash
#SBATCH --job-name={name}
#SBATCH --array=0-{last}%{most}
#SBATCH --nodes={processes} --ntasks={processes} --ntasks-per-node=1 --cpus-per-task={cpus}
#SBATCH --time={time}
#SBATCH --signal=TERM@{notice}
#SBATCH --requeue --open-mode=append
#SBATCH --output={home}/%A_%a.log
{options}
# Written by `bigmodel launch`; edit it at will, and submit it again to continue: finished rows end at once.
# {notice} s before the limit the row's processes get SIGTERM, save, and end with 75. This shell gets it only if Slurm
# stops the job itself (cancelled, node lost, limit reached): then whether it runs again is Slurm's business.
ids=({ids})
id=${{ids[$SLURM_ARRAY_TASK_ID]}}
echo "run $id"
stopped=
trap 'stopped=1' TERM
# srun returns the highest code of its tasks: one that failed for good must beat those that it took down (75, 137, 143).
srun --kill-on-bad-exit=1 --cpus-per-task={cpus} bash -c 'trap : TERM; "$@"; code=$?
  if (( code > 0 && code <= 128 && code != 75 )); then code=255; fi; exit $code' - \\
  {worker} --run="$id"
code=$?
if [ -z "$stopped" ] && (( code == 75 || code > 128 && code < 255 )) && (( ${{SLURM_RESTART_COUNT:-0}} < 100 )); then
  # Not $SLURM_JOB_ID: of one task of an array that is the id of the whole array.
  scontrol requeue "${{SLURM_ARRAY_JOB_ID}}_${{SLURM_ARRAY_TASK_ID}}" && exit 0
fi
exit $code
"""


def render(job: Job) -> dict[str, str]:
    # sbatch splits its lines at spaces, takes quotes, backslashes and # apart, and fills in what follows a %.
    refuse_unprintable("slurm", job.home, job.time, more=" '\"\\#%")
    refuse_unprintable("slurm", *job.options)
    return {
        "array.sbatch": SCRIPT.format(
            name=job.name,
            last=len(job.ids) - 1,
            ids=" ".join(job.ids),
            most=job.most,
            processes=job.processes,
            cpus=job.cpus,
            time=job.time,
            notice=job.notice,
            home=job.home,
            options="\n".join(f"#SBATCH {line}" for line in job.options),
            worker=job.worker,
        )
    }


def command(job: Job, path: str) -> list[str]:
    return ["sbatch", path]
