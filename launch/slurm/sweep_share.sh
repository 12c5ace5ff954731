#!/usr/bin/env bash
# One task of the array that launch/slurm/sweep.sh submits. It runs its share of a sweep's cells.
# When Slurm queues it again, it goes on where it was.
#SBATCH --job-name=sweep_share
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%A_%a.out

cd "${SLURM_SUBMIT_DIR:?submit this with sbatch}" || exit
exec .venv/bin/python -m experiments.sweep --share="$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT" "$@"
