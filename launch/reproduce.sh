#!/usr/bin/env bash
# Runs the main job on a fresh machine or a used one. Prints the path of report.html last.
#   bash launch/reproduce.sh                  the default, experiments/configs/reproduce.py
#   bash launch/reproduce.sh --preset=full    experiments/configs/reproduce_full.py
#   bash launch/reproduce.sh --preset=stories --config.checkpoint=FOLDER    reproduce_stories.py
# Results go to results/reproduce, or results/reproduce_PRESET. Other arguments go to
# experiments.reproduce, with paths relative to the repository.
source "$(dirname "${BASH_SOURCE[0]}")/setup_env.sh" || exit
arguments=(--workdir=results/reproduce)
for argument in "$@"; do
  case $argument in
    --preset=*) arguments+=("--config=experiments/configs/reproduce_${argument#*=}.py"
                            "--workdir=results/reproduce_${argument#*=}") ;;
    *) arguments+=("$argument") ;;
  esac
done
exec .venv/bin/python -m experiments.reproduce "${arguments[@]}"
