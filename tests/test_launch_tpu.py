"""launch/tpu/train.sh starts a training that outlives it; a false gcloud runs the host's part."""

import os
import pathlib
import shutil
import signal
import subprocess
import tempfile
import time

import pytest

from tests.helpers.machine import ROOT

# Copies and runs in the folder of the one host, as ssh would. Notes the words of each call.
GCLOUD = """#!/usr/bin/env bash
printf '%s\\n' "${*//$'\\n'/ }" >> "$HOST/calls"
case "$*" in
  *"queued-resources describe"*) echo ACTIVE ;;
  *"tpu-vm scp"*) cp "$5" "$HOST" ;;
  *"tpu-vm ssh"*) for word; do command=$word; done; cd "$HOST" && bash -c "${command#--command=}" ;;
esac
"""
# Stands for launch/setup.sh: makes a training that waits for SIGTERM, or ends with STATUS.
SETUP = """#!/usr/bin/env bash
echo "setup $*"
mkdir -p .venv/bin
cat > .venv/bin/python <<'PROGRAM'
#!/usr/bin/env bash
trap 'echo saved; exit 75' TERM
printf '<%s>' "$@"; echo
until [ -e "$HOST/end" ]; do sleep 0.1; done
exit "$(cat "$HOST/end")"
PROGRAM
chmod +x .venv/bin/python
"""
VARIABLES = dict(ZONE="us-west4-a", ACCELERATOR="v5litepod-64", RUNTIME="v2-alpha-tpuv5-lite")
ARGUMENTS = ["--workdir=/mnt/a b", "--config.task.name=it's"]


class Slice:
    """A checkout on a laptop, and a slice with one host."""

    def __init__(self, folder: pathlib.Path, sockets: str):
        self.laptop, self.host, bin_folder = folder / "laptop", folder / "host", folder / "bin"
        for new in (self.laptop, self.host, bin_folder):
            new.mkdir()
        (bin_folder / "gcloud").write_text(GCLOUD)
        (bin_folder / "gcloud").chmod(0o755)
        shutil.copytree(ROOT / "launch/tpu", self.laptop / "launch/tpu")
        (self.laptop / "launch/setup.sh").write_text(SETUP)
        self.process = None
        self.environment = os.environ | {
            "PATH": f"{bin_folder}:{os.environ['PATH']}",
            "HOST": str(self.host),
            "TMUX_TMPDIR": sockets,
        }
        self.git("init", "-q")
        self.commit()

    def git(self, *words: str):
        identity = ["-c", "user.name=x", "-c", "user.email=x", "-c", "commit.gpgsign=false"]
        subprocess.run(["git", *identity, *words], cwd=self.laptop, check=True)

    def commit(self):
        self.git("add", "--all")
        self.git("commit", "-q", "-m", "x")

    def start(self, **variables: str) -> subprocess.Popen:
        """Starts launch/tpu/train.sh with arguments that need quotes."""
        self.process = subprocess.Popen(
            ["bash", self.laptop / "launch/tpu/train.sh", "NAME", *ARGUMENTS],
            env=self.environment | VARIABLES | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        return self.process

    def close_terminal(self) -> str:
        """Kills launch/tpu/train.sh with all that it runs on the laptop. Returns its output."""
        os.killpg(self.process.pid, signal.SIGKILL)
        return self.process.communicate(timeout=30)[0]

    def tmux(self, *words: str) -> subprocess.CompletedProcess:
        """Runs a command of the host's tmux."""
        command = ["tmux", "-L", "staleness_grpo", *words]
        return subprocess.run(
            command, env=self.environment, capture_output=True, text=True, check=False
        )

    def on_host(self, word: str) -> subprocess.CompletedProcess:
        """Runs a command of host.sh on the host, as a user who connects again does."""
        return subprocess.run(
            ["bash", self.host / "staleness_grpo/launch/tpu/host.sh", word],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )

    def wait_for(self, text: str, name: str = "staleness_grpo/run.log"):
        """Returns once a file of the host has a text."""
        path = self.host / name
        deadline = time.monotonic() + 30
        while not (path.exists() and text in path.read_text()):
            assert time.monotonic() < deadline, f"never {text} in {name}"
            time.sleep(0.05)

    def calls(self) -> list[str]:
        """Returns the words of each call of gcloud."""
        path = self.host / "calls"
        return path.read_text().splitlines() if path.exists() else []


@pytest.fixture
def tpu(tmp_path):
    with tempfile.TemporaryDirectory() as sockets:  # the name of a socket must be short
        tpu = Slice(tmp_path, sockets)
        yield tpu
        (tpu.host / "end").write_text("0")  # a training that goes on ends by itself
        deadline = time.monotonic() + 10
        while shutil.which("tmux") and tpu.tmux("has-session").returncode == 0:
            assert time.monotonic() < deadline, "the training goes on"
            time.sleep(0.05)
        if tpu.process and tpu.process.poll() is None:
            tpu.close_terminal()


needs_tmux = pytest.mark.skipif(not shutil.which("tmux"), reason="tmux is not installed")
STARTED = "<-m><experiments.train><--coordinator=auto><--workdir=/mnt/a b><--config.task.name=it's>"


@pytest.mark.parametrize("missing", ["ZONE", "ACCELERATOR", "RUNTIME"])
def test_a_missing_variable_is_named_before_anything_is_asked_for(tpu, missing):
    process = tpu.start(**{missing: ""})
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 2 and errors.count("\n") == 1 and missing in errors
    assert tpu.calls() == []


@pytest.mark.parametrize("change", ["launch/setup.sh", "new_config.py"])
def test_a_working_tree_with_changes_is_refused_before_anything_is_asked_for(tpu, change):
    (tpu.laptop / change).write_text("changed")
    process = tpu.start()
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 2 and errors.count("\n") == 1
    assert change in errors and "HEAD_ONLY=1" in errors and tpu.calls() == []


@needs_tmux
def test_the_last_commit_is_sent_where_that_is_asked_for(tpu):
    (tpu.laptop / "launch/setup.sh").write_text("changed")
    (tpu.host / "end").write_text("0")
    process = tpu.start(HEAD_ONLY="1")
    process.communicate(timeout=30)
    assert process.returncode == 0
    assert (tpu.host / "staleness_grpo/launch/setup.sh").read_text() == SETUP


@needs_tmux
@pytest.mark.parametrize("status", [0, 2])
def test_who_follows_sees_the_output_and_gets_the_status(tpu, status):
    process = tpu.start()
    tpu.wait_for(STARTED)
    (tpu.host / "end").write_text(str(status))
    printed, errors = process.communicate(timeout=30)
    assert process.returncode == status, errors
    assert f"setup --accelerator=tpu\n{STARTED}\n" in printed
    assert printed.splitlines()[-1].endswith(
        "queued-resources delete NAME --zone=us-west4-a --force"
    )
    described, _, copied, started, followed = tpu.calls()
    assert "queued-resources describe NAME" in described
    assert "tpu-vm scp" in copied and "NAME: --worker=all" in copied
    assert "--worker=all" in started and "--worker=0" in followed


@needs_tmux
def test_a_training_outlives_the_terminal_and_can_be_followed_and_ended(tpu):
    tpu.start()
    tpu.wait_for(STARTED)
    tpu.wait_for("host.sh follow", "calls")
    printed = tpu.close_terminal()
    assert "runs on NAME, also without this terminal" in printed
    follow, end = (line for line in printed.splitlines() if line.startswith("to "))
    assert follow.endswith("--worker=0 --command='bash staleness_grpo/launch/tpu/host.sh follow'")
    assert end.endswith("--worker=all --command='bash staleness_grpo/launch/tpu/host.sh stop'")

    second = tpu.start()
    _, errors = second.communicate(timeout=30)
    assert second.returncode == 1 and "a training runs here already" in errors
    assert tpu.on_host("stop").returncode == 0
    followed = tpu.on_host("follow")
    assert followed.returncode == 75 and followed.stdout.endswith(f"{STARTED}\nsaved\n")

    tpu.start()
    tpu.wait_for("saved", "staleness_grpo/run.previous.log")
    tpu.wait_for(STARTED)  # in a log of its own
    assert not (tpu.host / "staleness_grpo/run.status").exists()


@needs_tmux
def test_a_machine_that_is_taken_away_lets_the_training_save(tpu):
    tpu.start()
    tpu.wait_for(STARTED)
    tpu.close_terminal()
    panes = ["list-panes", "-t", "=train", "-F", "#{pid} #{pane_pid}"]
    words = tpu.tmux(*panes).stdout.split()
    children = pathlib.Path(f"/proc/{words[1]}/task/{words[1]}/children").read_text().split()
    for pid in [*words, *children]:  # the server, which hangs up, then the shell and the training
        os.kill(int(pid), signal.SIGTERM)
    tpu.wait_for("saved")
    tpu.wait_for("75", "staleness_grpo/run.status")
    assert tpu.on_host("follow").returncode == 75


def test_a_host_without_a_word_says_what_it_knows():
    done = subprocess.run(
        ["bash", ROOT / "launch/tpu/host.sh"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2 and "start, follow or stop" in done.stderr
