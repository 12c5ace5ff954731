#!/usr/bin/env bash
# Runs the tests on a fresh machine or a used one. Arguments go to pytest, with paths relative to the repository:
#   bash launch/test.sh                        all but the slow tests
#   bash launch/test.sh -m slow tests/bias     the slow ones of one folder
source "$(dirname "${BASH_SOURCE[0]}")/setup_env.sh" || exit
# One worker for each core; a file's tests stay together, because they share compiled functions.
exec .venv/bin/python -m pytest -n auto --dist loadfile "$@"
