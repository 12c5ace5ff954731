#!/usr/bin/env bash
# Submits a sweep as an array of N tasks, each with its share of the cells. When all are done, a
# last job makes the figures.
#   bash launch/slurm/sweep.sh N [sbatch options] -- --workdir=DIR [--config=FILE.py ...]
# Arguments after the -- go to experiments.sweep. Prints the ids of the array and of the last job.
# Make .venv before, by bash launch/setup.sh.
shares=$1
case $shares in
  '' | *[!0-9]* | 0) echo "N=$shares: give the number of tasks: bash launch/slurm/sweep.sh N [options] -- --workdir=DIR" >&2
                     exit 2 ;;
esac
shift
options=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do
  options+=("$1")
  shift
done
if [ $# -eq 0 ]; then
  echo "there is no -- before the arguments of experiments.sweep: bash launch/slurm/sweep.sh N -- --workdir=DIR" >&2
  exit 2
fi
shift

cd "$(dirname "${BASH_SOURCE[0]}")/../.." || exit 1
if [ ! -x .venv/bin/python ]; then
  echo "$PWD has no .venv: make it by bash launch/setup.sh, and submit again" >&2
  exit 2
fi
array=$(sbatch --parsable "${options[@]}" --array="1-$shares" launch/slurm/sweep_share.sh "$@") || exit
figures=$(sbatch --parsable "${options[@]}" --dependency="afterok:$array" launch/slurm/sweep_figures.sh "$@") || exit
echo "$array $figures"
