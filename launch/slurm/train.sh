#!/usr/bin/env bash
# Runs one training over all tasks of a job. The job is queued again when it is preempted, or
# reaches its time limit.
#   sbatch [--nodes=2 --gpus-per-node=8 ...] launch/slurm/train.sh --config=FILE.py --workdir=DIR [...]
# Submit it from the root of the repository. Arguments go to experiments.train, with paths relative
# to the root. All nodes must see DIR and .venv. Make .venv before:
#   bash launch/setup.sh --accelerator=cuda12        or cuda13; without the flag for CPUs
#SBATCH --job-name=staleness_grpo
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%j.out
# Slurm sends SIGTERM two minutes before the limit, and at a preemption. The tasks get it, and not
# this shell.
#SBATCH --signal=TERM@120

cd "${SLURM_SUBMIT_DIR:?submit this with sbatch}" || exit
if [ ! -x .venv/bin/python ]; then
  echo "$PWD has no .venv: make it by bash launch/setup.sh, and submit from the repository's root" >&2
  exit 2
fi

# The tasks find each other by variables that Slurm sets for the step. A lost task ends the others.
srun --kill-on-bad-exit=1 .venv/bin/python -m experiments.train "$@"
status=$?

# With status 75 the run is saved, and the same command goes on with it.
if [ "$status" -eq 75 ]; then
  echo "saved; job $SLURM_JOB_ID is queued again"
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
