"""A false machine for the launch scripts: the programs on its PATH, and what was asked of them."""

import os
import pathlib
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]
COREUTILS = "bash cat chmod cp dirname env find grep hostname ls mkdir rm sed"

# A Python that installs nothing. It answers what launch/setup.sh asks of it, and notes the rest.
PYTHON = f"""#!{shutil.which("bash")}
case "$1 $2" in
  *ensurepip*) [ "$VERSION" -ge 311 ] && echo "$0"; exit ;;
  *"sys.exit(sys.version_info"*) [ "$VERSION" -ge 312 ]; exit ;;
  *hashlib*) exec {sys.executable} "$@" ;;
esac
echo "${{0##*/}} $*" >> "$CALLS"
case "$*" in
  *" --target .venv-uv "*)
    [ -n "$UV" ] && mkdir -p .venv-uv/bin && cp "$UV" .venv-uv/bin/uv
    exit ;;
  "-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python"; exit ;;
  *--requirement=*) exit "${{PIP_STATUS:-0}}" ;;
esac
"""

# A uv that brings a Python 3.12.
UV = f"""#!{shutil.which("bash")}
echo "uv $* into $UV_PYTHON_INSTALL_DIR" >> "$CALLS"
folder=$UV_PYTHON_INSTALL_DIR/cpython-3.12.1-linux/bin
mkdir -p "$folder" && sed '2i VERSION=312' "$PYTHON" > "$folder/python3.12"
chmod +x "$folder/python3.12"
"""


class Machine:
    """A machine with bash, some tools and a false `python3`, and a checkout of the launch scripts.

    Attributes:
      checkout: the folder of the checkout.
      path: the folder of its programs, the only one on the PATH.
    """

    def __init__(self, folder: pathlib.Path, version: int = 311):
        self.path, self.checkout, self.calls = folder / "bin", folder / "repo", folder / "calls"
        self.path.mkdir()
        for name in COREUTILS.split():
            (self.path / name).symlink_to(shutil.which(name))
        self.program("python3", PYTHON)
        shutil.copytree(ROOT / "launch", self.checkout / "launch")
        shutil.copy(ROOT / "setup.py", self.checkout)
        self.environment = {
            "PATH": str(self.path),
            "HOME": str(folder / "home"),
            "CALLS": str(self.calls),
            "PYTHON": str(self.path / "python3"),
            "VERSION": str(version),
        }

    def program(self, name: str, text: str) -> pathlib.Path:
        """Puts a program on the PATH."""
        path = self.path / name
        path.write_text(text)
        path.chmod(0o755)
        return path

    def run(self, command: str, **environment: str) -> subprocess.CompletedProcess:
        """Runs a command of bash in the checkout."""
        return subprocess.run(
            [self.path / "bash", "-c", command],
            cwd=self.checkout,
            env=self.environment | environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def called(self) -> list[str]:
        """Returns what the false programs were asked since the last time, one line a call."""
        lines = self.calls.read_text().splitlines() if self.calls.exists() else []
        if lines:
            os.remove(self.calls)
        return lines
