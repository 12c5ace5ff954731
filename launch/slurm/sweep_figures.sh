#!/usr/bin/env bash
# The last job of launch/slurm/sweep.sh: gathers the shares, runs missing cells, analyzes and draws.
#SBATCH --job-name=sweep_figures
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --output=slurm-%j.out

cd "${SLURM_SUBMIT_DIR:?submit this with sbatch}" || exit
exec .venv/bin/python -m experiments.sweep "$@"
