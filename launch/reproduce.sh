#!/usr/bin/env bash
# Runs the main job on a fresh machine or a used one; the last line printed is the path of report.html.
# Results go to results/reproduce. Arguments go to experiments.reproduce, with paths relative to the repository.
source "$(dirname "${BASH_SOURCE[0]}")/setup_env.sh" || exit
exec .venv/bin/python -m experiments.reproduce --workdir=results/reproduce "$@"
