#!/usr/bin/env bash
# NOT RUN: this script was checked by bash and shellcheck alone.
# Runs one training on the TPUs of a queued resource: on a single VM (ACCELERATOR=v5litepod-8), or
# on a slice of several hosts (v5litepod-64).
#   ZONE=us-west4-a ACCELERATOR=v5litepod-64 RUNTIME=v2-alpha-tpuv5-lite \
#     bash launch/tpu/train.sh NAME --config=FILE.py --workdir=/mnt/DIR --config.mesh.fsdp=64 [...]
# It asks for the resource and waits for it. Then it copies the last commit to every host, makes
# .venv there, and trains on all hosts at once. DIR must be a folder that all hosts see (a Filestore
# share, mounted before). The checkpoints go there; the same command goes on from the newest one.
# SPOT=1 asks for VMs that may be taken away. They get SIGTERM, on which the run saves and ends with
# code 75. The resource stays: the command that deletes it is printed at the end, also after an error.
set -euo pipefail

usage="ZONE=... ACCELERATOR=... RUNTIME=... bash launch/tpu/train.sh NAME --config=FILE.py --workdir=/mnt/DIR [...]"
if [ $# -lt 2 ] || [ -z "${ZONE:-}" ] || [ -z "${ACCELERATOR:-}" ] || [ -z "${RUNTIME:-}" ]; then
  echo "NAME, ZONE, ACCELERATOR and RUNTIME are needed: $usage" >&2
  exit 2
fi
name=$1
shift
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

tpus=(gcloud compute tpus)
state() {
  "${tpus[@]}" queued-resources describe "$name" --zone="$ZONE" --format="value(state.state)"
}
if ! state >/dev/null 2>&1; then
  "${tpus[@]}" queued-resources create "$name" --node-id="$name" --zone="$ZONE" --accelerator-type="$ACCELERATOR" \
    --runtime-version="$RUNTIME" ${SPOT:+--spot}
fi
until [ "$(state)" = ACTIVE ]; do
  case $(state) in
    FAILED | SUSPENDED | SUSPENDING) echo "the queued resource is $(state): delete it, and ask again" >&2; exit 1 ;;
  esac
  sleep 30
done

trap 'echo "gcloud compute tpus queued-resources delete $name --zone=$ZONE --force"' EXIT
git archive --format=tar.gz --output=/tmp/staleness_grpo.tar.gz HEAD
"${tpus[@]}" tpu-vm scp /tmp/staleness_grpo.tar.gz "$name:/tmp/" --worker=all --zone="$ZONE"
# jax[tpu] brings the TPU library, and the lock the rest. %q keeps the arguments as they were given.
printf -v arguments ' %q' "$@"
"${tpus[@]}" tpu-vm ssh "$name" --worker=all --zone="$ZONE" --command="
  mkdir -p staleness_grpo && tar -xzf /tmp/staleness_grpo.tar.gz -C staleness_grpo && cd staleness_grpo &&
  source launch/setup_env.sh && .venv/bin/python -m pip install --quiet 'jax[tpu]' &&
  .venv/bin/python -m experiments.train --coordinator=auto$arguments"
