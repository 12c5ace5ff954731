#!/usr/bin/env bash
# Runs the tests on a fresh machine or a used one.
#   bash launch/test.sh                        all tests but the slow ones
#   bash launch/test.sh -m slow tests/bias     the slow tests of one folder
# Arguments go to pytest, with paths relative to the repository.
source "$(dirname "${BASH_SOURCE[0]}")/setup_env.sh" || exit
# Each core has one worker. The tests of a file stay together: they share compiled functions. Files
# start in the order of tests/conftest.py, and not in the order of their numbers of tests.
exec .venv/bin/python -m pytest -n auto --dist loadfile --no-loadscope-reorder "$@"
