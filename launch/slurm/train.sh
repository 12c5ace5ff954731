#!/usr/bin/env bash
# One training over all tasks of a job, which is queued again when it is preempted or reaches its time limit.
#   sbatch [--nodes=2 --gpus-per-node=8 ...] launch/slurm/train.sh --config=FILE.py --workdir=DIR [...]
# Arguments go to experiments.train, with paths relative to the repository, from whose root it is submitted; DIR must be
# seen by all nodes. The .venv is made before, on a file system that they see too: bash launch/test.sh does so.
#SBATCH --job-name=staleness_grpo
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%j.out
# Slurm sends SIGTERM to the tasks, not to this shell, two minutes before the limit, and at a preemption.
#SBATCH --signal=TERM@120

cd "${SLURM_SUBMIT_DIR:?submit this with sbatch}" || exit

# The tasks find each other through what Slurm sets for the step. One that is lost takes the others with it.
srun --kill-on-bad-exit=1 .venv/bin/python -m experiments.train "$@"
status=$?

# 75: saved, and to be gone on with by the same command.
if [ "$status" -eq 75 ]; then
  echo "saved; job $SLURM_JOB_ID is queued again"
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
