#!/usr/bin/env bash
# NOT RUN on a TPU: tests run this script with a false gcloud.
# Runs one training on the TPUs of a queued resource: on a single VM (ACCELERATOR=v5litepod-8), or
# on a slice of several hosts (v5litepod-64).
#   ZONE=us-west4-a ACCELERATOR=v5litepod-64 RUNTIME=v2-alpha-tpuv5-lite \
#     bash launch/tpu/train.sh NAME --config=FILE.py --workdir=/mnt/DIR --config.mesh.fsdp=64 [...]
# It asks for the resource and waits for it. Then it copies the last commit to every host and starts
# the training on all of them: launch/tpu/host.sh makes .venv there, by launch/setup.sh. From then on
# the training needs this machine no more. This script only follows its output, and returns its
# status. DIR must be a folder that all hosts see (a Filestore share, mounted before). The checkpoints
# go there; the same command goes on from the newest one.
# A working tree with changes is refused, as they are not sent; HEAD_ONLY=1 accepts that.
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

changes=$(git status --porcelain)
if [ -n "$changes" ] && [ -z "${HEAD_ONLY:-}" ]; then
  echo "HEAD_ONLY=: only the last commit is sent, and $(wc -l <<<"$changes") files differ from it" \
    "(${changes%%$'\n'*}): commit them, or set HEAD_ONLY=1 to leave them out" >&2
  exit 2
fi

tpus=(gcloud compute tpus)
state() {
  "${tpus[@]}" queued-resources describe "$name" --zone="$ZONE" --format="value(state.state)"
}
if ! state >/dev/null 2>&1; then
  "${tpus[@]}" queued-resources create "$name" --node-id="$name" --zone="$ZONE" --accelerator-type="$ACCELERATOR" \
    --runtime-version="$RUNTIME" ${SPOT:+--spot}
fi
trap 'echo "to delete the machines: gcloud compute tpus queued-resources delete $name --zone=$ZONE --force"' EXIT
until [ "$(state)" = ACTIVE ]; do
  case $(state) in
    FAILED | SUSPENDED | SUSPENDING) echo "the queued resource is $(state): delete it, and ask again" >&2; exit 1 ;;
  esac
  sleep 30
done

archive=$(mktemp -d)/staleness_grpo.tar.gz
git archive --format=tar.gz --output="$archive" HEAD
"${tpus[@]}" tpu-vm scp "$archive" "$name:" --worker=all --zone="$ZONE"
rm -r "${archive%/*}"

on_host="bash staleness_grpo/launch/tpu/host.sh"
ssh=(tpu-vm ssh "$name" --zone="$ZONE")
# %q keeps the arguments as they were given. Code under a training that runs is not changed.
printf -v arguments ' %q' "$@"
"${tpus[@]}" "${ssh[@]}" --worker=all --command="
  if tmux -L staleness_grpo has-session -t =train 2>/dev/null; then
    echo 'a training runs here already: end it by $on_host stop' >&2
    exit 1
  fi
  mkdir -p staleness_grpo && tar -xzf staleness_grpo.tar.gz -C staleness_grpo && $on_host start$arguments"

echo "the training runs on $name, also without this terminal"
echo "to follow it: ${tpus[*]} ${ssh[*]} --worker=0 --command='$on_host follow'"
echo "to end it, saved: ${tpus[*]} ${ssh[*]} --worker=all --command='$on_host stop'"
"${tpus[@]}" "${ssh[@]}" --worker=0 --command="$on_host follow"
