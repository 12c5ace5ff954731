#!/usr/bin/env bash
# Leaves a complete .venv in the repository, made from an exact lock.
#   bash launch/setup.sh [--accelerator=cpu|cuda12|cuda13|tpu]
# Without the flag, .venv stays for what it was made for; a new one is for the CPU. A complete .venv
# gets a stamp. Without the right stamp it is made anew: the lock has changed, or the setup was cut
# off. If the machine has no Python >= 3.11, uv brings one into .venv-python.

refuse() {
  echo "$1" >&2
  exit 2
}

wanted=
for argument in "$@"; do
  case $argument in
    -h | --help) sed -n '2,/^$/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit ;;
    --accelerator=cpu | --accelerator=cuda12 | --accelerator=cuda13 | --accelerator=tpu) wanted=${argument#*=} ;;
    --accelerator | --accelerator=*)
      refuse "$argument: choose one of --accelerator=cpu, cuda12, cuda13, tpu" ;;
    *) refuse "$argument: there is no such flag; give --accelerator=cpu, cuda12, cuda13 or tpu" ;;
  esac
done

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1

# Prints the path of the first Python >= 3.11 that can make a virtual environment. A name on the
# PATH may be a shim that fails, or a Python without ensurepip.
find_python() {
  local name
  for name in python3 python3.12 python3.11 python3.13 python3.14 python \
    .venv-python/cpython-3.12*/bin/python3.12; do
    "$name" -c 'import ensurepip, sys, venv; assert sys.version_info >= (3, 11); print(sys.executable)' \
      2>/dev/null && return
  done
  return 1
}

# Prints the path of uv. A Python that is too old for this repository can still install it.
find_uv() {
  local name
  for name in uv "$HOME/.local/bin/uv" .venv-uv/bin/uv; do
    command -v "$name" && return
  done
  for name in python3 python; do
    "$name" -m pip install --quiet --disable-pip-version-check --target .venv-uv uv==0.13.9 >/dev/null 2>&1 &&
      command -v .venv-uv/bin/uv && return
  done
  return 1
}

# The Python lies beside .venv, so that machines which see the one see the other.
bring_python() {
  local uv
  uv=$(find_uv) || return
  echo "There is no Python >= 3.11 with venv and ensurepip here: $uv brings Python 3.12 into .venv-python" >&2
  UV_PYTHON_INSTALL_DIR=$PWD/.venv-python UV_PYTHON_INSTALL_BIN=0 "$uv" python install 3.12 >&2
}

# What .venv is for, or was to be for when its setup was cut off. Older ones do not say it: the CPU.
made_for() {
  if [ -e .venv/stamp ] || [ -e .venv/made_by_launch ]; then
    local words
    words=$(cat .venv/made_by_launch 2>/dev/null)
    echo "${words:-cpu}"
  fi
}

make_env() {
  local python version lock stamp
  local locks=()
  # A link to a larger disk is welcome, and one to the environment of another folder is not emptied.
  if [ -L .venv ] && [ -e .venv/stamp ] && ! grep -qF " $PWD " .venv/stamp; then
    echo "$PWD/.venv is a link to the environment of another folder: delete it, and run this again." >&2
    return 1
  fi
  python=$(find_python) || { bring_python && python=$(find_python); } || {
    echo "No Python >= 3.11 with venv and ensurepip found, and no uv that brings one: install either, and run this again." >&2
    return 1
  }
  version=311
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 12))' && version=312
  for lock in "launch/requirements-py$version.txt" "launch/requirements-$accelerator-py$version.txt"; do
    [ -e "$lock" ] && locks+=("$lock")  # the CPU has the first one alone
  done
  # The folder is in the stamp because neither a venv nor an editable install survives being moved.
  stamp=$("$python" -c 'import hashlib, os, sys
print(sys.version_info[:2], sys.argv[1], os.getcwd(), *(hashlib.sha256(open(f, "rb").read()).hexdigest() for f in sys.argv[2:]))' \
    "$accelerator" "${locks[@]}" setup.py) || return 1
  [ "$(cat .venv/stamp 2>/dev/null)" = "$stamp" ] && return

  if [ -n "$(ls -A .venv/ 2>/dev/null)" ] && [ ! -e .venv/stamp ] && [ ! -e .venv/made_by_launch ]; then
    echo "$PWD/.venv was not made by launch/: move it away, or delete it, and run this again." >&2
    return 1
  fi
  echo "Making .venv for $accelerator from ${locks[*]} with $python" >&2
  # The stamp goes first, so that no half of .venv has one. What .venv is for stays throughout: a setup
  # that is cut off is known by it.
  mkdir -p .venv && rm -f .venv/stamp && echo "$accelerator" > .venv/made_by_launch &&
    find .venv/ -mindepth 1 ! -path .venv/made_by_launch -delete &&
    "$python" -m venv "$(cd .venv && pwd -P)" &&  # venv refuses a link
    .venv/bin/python -m pip install --quiet --disable-pip-version-check "${locks[@]/#/--requirement=}" &&
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable . &&
    echo "$stamp" > .venv/stamp
}

now=$(made_for)
accelerator=${wanted:-${now:-cpu}}
# The environment of an accelerator takes gigabytes, and someone may train with it now.
case $now in
  '' | cpu | "$accelerator") ;;
  *) refuse "--accelerator=$accelerator: $PWD/.venv is for $now; delete it or move it away, and run this again" ;;
esac
make_env >&2 || { echo "The environment could not be set up; see above." >&2; exit 1; }
echo "$PWD/.venv is ready for $accelerator"
