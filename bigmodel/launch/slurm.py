"""Slurm: one sbatch array with a task for every row."""

from bigmodel.launch import Job, refuse_unprintable

CLIENT = "sbatch"
COMMAND = "sbatch"
SCRIPT = """\
#!/bin/bash
#SBATCH --job-name={job.name}
#SBATCH --array=0-{last}%{job.most}
#SBATCH --nodes={job.processes} --ntasks={tasks} --ntasks-per-node={each} --cpus-per-task={job.cpus}{gpus}
#SBATCH --time={job.time}
#SBATCH --signal=TERM@{job.notice}
#SBATCH --requeue --open-mode=append
#SBATCH --output={job.home}/%A_%a.log
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
# shellcheck disable=SC2016 # the quotes are for each task's shell
srun --kill-on-bad-exit=1 --cpus-per-task={job.cpus} bash -c 'trap : TERM; "$@"; code=$?
  if (( code > 0 && code <= 128 && code != 75 )); then code=255; fi; exit $code' - \\
  {job.worker} --run="$id"
code=$?
if [ -z "$stopped" ] && (( code == 75 || code > 128 && code < 255 )) && (( ${{SLURM_RESTART_COUNT:-0}} < 100 )); then
  # Not $SLURM_JOB_ID: of one task of an array that is the id of the whole array.
  scontrol requeue "${{SLURM_ARRAY_JOB_ID}}_${{SLURM_ARRAY_TASK_ID}}" && exit 0
fi
exit $code
"""


def render(job: Job) -> dict[str, str]:
    # sbatch splits its lines at spaces, interprets quotes, backslashes and #, and expands what follows a %.
    refuse_unprintable("slurm", job.home, job.time, more=" '\"\\#%")
    refuse_unprintable("slurm", *job.options)
    options = "\n".join(f"#SBATCH {line}" for line in job.options)
    ids, last = " ".join(job.ids), len(job.ids) - 1
    # JAX takes one GPU a process, by its rank on the node, so every process has to see all of them: no binding.
    each, gpus = max(job.gpus, 1), f" --gpus-per-node={job.gpus}" if job.gpus else ""
    known = dict(tasks=job.processes * each, each=each, gpus=gpus)
    return {"array.sbatch": SCRIPT.format(job=job, ids=ids, last=last, notice=job.notice, options=options, **known)}
