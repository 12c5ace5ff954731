# The commands of this folder source this file. It enters the repository and leaves a complete .venv
# in it, or exits. A complete environment gets a stamp. Without the right stamp it is made anew: the
# lock has changed, or the setup was cut off.

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1

# Prints the path of the first Python >= 3.11 that can make a virtual environment. A name on the
# PATH may be a shim that fails, or a Python without ensurepip.
find_python() {
  local name
  for name in python3 python3.12 python3.11 python3.13 python3.14 python; do
    "$name" -c 'import ensurepip, sys, venv; assert sys.version_info >= (3, 11); print(sys.executable)' \
      2>/dev/null && return
  done
  echo "No Python >= 3.11 with the venv and ensurepip modules found: install one and run this again." >&2
  return 1
}

make_env() {
  local python lock stamp
  python=$(find_python) || return 1
  lock=launch/requirements-py311.txt
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 12))' && lock=launch/requirements-py312.txt
  stamp=$("$python" -c 'import hashlib, os, sys
print(sys.version_info[:2], os.getcwd(), *(hashlib.sha256(open(f, "rb").read()).hexdigest() for f in sys.argv[1:]))' \
    "$lock" setup.py) || return 1
  # The folder is in the stamp because neither a venv nor an editable install survives being moved.
  [ "$(cat .venv/stamp 2>/dev/null)" = "$stamp" ] && return

  if [ -e .venv ] && [ ! -e .venv/stamp ] && [ ! -e .venv/made_by_launch ]; then
    echo "$PWD/.venv was not made by launch/: move it away, or delete it, and run this again." >&2
    return 1
  fi
  echo "Making .venv from $lock with $python" >&2
  "$python" -m venv --clear .venv &&
    touch .venv/made_by_launch &&
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --requirement "$lock" &&
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable . &&
    echo "$stamp" > .venv/stamp
}

make_env >&2 || { echo "The environment could not be set up; see above." >&2; exit 1; }
