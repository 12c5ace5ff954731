#!/usr/bin/env bash
# NOT RUN on a TPU: tests run it with a false training.
# What launch/tpu/train.sh runs on the hosts of a slice. The training outlives the connection.
#   bash launch/tpu/host.sh start [...]   starts experiments.train with these arguments, and returns
#   bash launch/tpu/host.sh follow        prints its output until it ends; returns its status
#   bash launch/tpu/host.sh stop          sends it SIGTERM, on which it saves and ends
# A start makes .venv first. The output is in run.log.
cd "$(dirname "${BASH_SOURCE[0]}")/../.." || exit 1

session=(tmux -L staleness_grpo)  # a server of its own, apart from the user's

case ${1:-} in
  start)
    command -v tmux >/dev/null || { echo "tmux is not installed: sudo apt-get install tmux" >&2; exit 1; }
    rm -f run.status
    [ ! -e run.log ] || mv run.log run.previous.log
    touch run.log
    "${session[@]}" new-session -d -s train bash launch/tpu/host.sh run "${@:2}"
    ;;
  run)
    # When the machine is taken away, all processes get SIGTERM, and tmux hangs up as it ends. This
    # shell waits for the training in spite of both, and the training saves.
    trap '' HUP
    trap : TERM
    { bash launch/setup.sh --accelerator=tpu &&
        .venv/bin/python -m experiments.train --coordinator=auto "${@:2}"; } >run.log 2>&1
    echo $? >run.status
    ;;
  follow)
    tail -n +1 -f run.log &
    while "${session[@]}" has-session -t =train 2>/dev/null; do sleep 1; done
    sleep 1  # for the last lines
    kill $!
    [ -e run.status ] || { echo "the training ended without a status" >&2; exit 1; }
    exit "$(cat run.status)"
    ;;
  stop)
    pkill -TERM -P "$("${session[@]}" list-panes -t =train -F '#{pane_pid}')"
    ;;
  *)
    echo "$1: give start, follow or stop" >&2
    exit 2
    ;;
esac
