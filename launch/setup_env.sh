# The commands of this folder source this file. It enters the repository and leaves a complete .venv
# in it, by launch/setup.sh, or exits. A .venv for an accelerator stays one.

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
bash launch/setup.sh >/dev/null || exit
