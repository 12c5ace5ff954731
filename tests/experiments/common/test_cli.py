"""Bad input ends with exit code 2 and one line: flag, value, fix. Nothing is written."""

import contextlib
import errno
import json
import os
import pathlib
import subprocess
import sys

import pytest
from absl import flags

from experiments.common import cli
from experiments.common.flag_parsing import check_sections, parse
from staleness_grpo.config.defaults import default_config
from staleness_grpo.errors import FieldError, FlagError
from staleness_grpo.runtime.records import read_jsonl
from tests.helpers.workdirs import execute

GOOD = "from staleness_grpo.config.defaults import default_config as get_config\n"
DEFAULT = cli.ROOT / "tests" / "programs" / "default_config.py"


@pytest.fixture
def config_file(tmp_path):
    path = tmp_path / "good.py"
    path.write_text(GOOD)
    return path


def parsed(*args, default_config):
    flag_values = flags.FlagValues()
    parse(["prog", *map(str, args)], flag_values, default_config)
    return flag_values


def one_line(error):
    message = str(error.value)
    assert "\n" not in message
    return message


def test_a_field_that_the_file_leaves_out_of_its_task_can_be_a_flag(tmp_path):
    path = tmp_path / "problems.py"
    path.write_text(
        "from ml_collections import ConfigDict\n"
        "from staleness_grpo.config.defaults import default_config\n"
        "def get_config():\n"
        "    config = default_config()\n"
        "    config.task = ConfigDict(dict(name='jsonl', path='x', verifier='exact'))\n"
        "    return config\n"
    )
    flag = "--config.task.prompt_column=text"
    config = parsed(f"--config={path}", flag, default_config=path).config
    assert config.task.prompt_column == "text" and config.task.path == "x"
    with pytest.raises(FlagError, match="^--config.task.prompt_colum=x: unknown field prompt_colu"):
        parsed(f"--config={path}", "--config.task.prompt_colum=x", default_config=path)


def test_overrides_reach_the_config(config_file):
    flag_values = parsed(
        f"--config={config_file}",
        "--workdir=out",
        "--config.lag.max_lag=16",
        "--config.optimizer.learning_rate=1",
        "--noconfig.surrogate.normalize_std",
        default_config="unused.py",
    )
    config = flag_values.config
    assert (config.lag.max_lag, config.optimizer.learning_rate, config.surrogate.normalize_std) == (
        16,
        1.0,
        False,
    )
    assert flag_values.workdir == "out"
    assert parsed("--config.steps=7", default_config=config_file).config.steps == 7


@pytest.mark.parametrize(
    ("args", "start", "hint"),
    [
        (["--workdri=x"], "--workdri=x: ", "did you mean --workdir?"),
        (["--steps=3"], "--steps=3: ", "--config.FIELD"),
        (["--config.stepz=3"], "--config.stepz=3: ", "did you mean steps?"),
        (["--config.lag.maximum=3"], "--config.lag.maximum=3: ", "max_lag"),
        (
            ["--config.task.path=x"],
            "--config.task.path=x: ",
            "for another task write a config file",
        ),
        (["--config.steps.lag=3"], "--config.steps.lag=3: ", "unknown field lag"),
        (["--config.steps=many"], "--config.steps=many: ", "type int, as in 300"),
        (["--config.steps=1.5"], "--config.steps=1.5: ", "type int, as in 300"),
        (
            ["--config.optimizer.learning_rate=1:2"],
            "--config.optimizer.learning_rate=1:2: ",
            "type float",
        ),
        (
            ["--config.surrogate.normalize_std=maybe"],
            "--config.surrogate.normalize_std=maybe: Non-boolean",
            "type bool",
        ),
        (
            ["--config.steps=7", "--config.steps=many"],
            "--config.steps=many: ",
            "type int, as in 300",
        ),
        (["--config.lag=3"], "--config.lag=3: ", "is not a dict"),
        (["--config.steps"], "--config.steps=: ", "type int"),
        (["--workdir"], "--workdir=: ", "give a value"),
        (["--config"], "--config=: ", "--config=FILE.py"),
        (["--config="], "--config=", "no such file"),
        (["--config=absent.py"], "--config=absent.py: ", "no such file"),
        (["results"], "results=: this belongs to no flag", "write --NAME=VALUE"),
        (["steps=3"], "steps=3: this belongs to no flag", "write --config.steps=3"),
        (["lag.max_lag=3"], "lag.max_lag=3: ", "write --config.lag.max_lag=3"),
        (["workdir=x"], "workdir=x: ", "write --workdir=x"),
        (["--config.steps=1e3"], "--config.steps=1e3: is not a whole number: ", "type int"),
    ],
)
def test_bad_flags_are_refused_by_name(config_file, args, start, hint):
    with pytest.raises(FlagError) as error:
        parsed(*args, default_config=config_file)
    assert one_line(error).startswith(start)
    assert hint in one_line(error)


def test_of_a_field_given_twice_the_last_counts_and_two_lists_are_refused():
    default, seeds = cli.ROOT / "experiments" / "configs" / "small_map.py", "--config.sweep.seeds"
    config = parsed("--config.steps=3", "--config.steps=4", default_config=default).config
    assert config.steps == 4
    with pytest.raises(FlagError) as error:
        parsed(f"{seeds}=(0,1)", f"{seeds}=(2,)", default_config=default)
    hint = "the flag is given twice, before with (0,1): give one list"
    assert one_line(error) == f"{seeds}=(2,): {hint}"


def test_an_override_may_stand_before_the_file(config_file):
    flag_values = parsed("--config.steps=3", f"--config={config_file}", default_config=config_file)
    assert flag_values.config.steps == 3


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("x = (", "SyntaxError"),
        ("x = 1", "KeyError: 'get_config'"),
        ("import no_such_module", "ModuleNotFoundError"),
        (
            "def get_config():\n    return 1 / 0",
            r"ZeroDivisionError: division by zero \(.*broken.py, line 2\)",
        ),
        (GOOD + "def get_config(c=get_config()):\n    c.lock()\n    c.stepz = 3", "stepz"),
        ("def get_config():\n    return 3", "returned int"),
        ("\0", "Error"),
    ],
)
def test_broken_config_files_are_refused(tmp_path, text, reason):
    path = tmp_path / "broken.py"
    path.write_text(text)
    with pytest.raises(FlagError, match=rf"^--config={path}: .*{reason}") as error:
        parsed(f"--config={path}", default_config="unused.py")
    one_line(error)


@pytest.mark.parametrize(
    ("default", "section"),
    [
        ("paired_bias", "paired"), ("memory_llama_1b", "benchmark"), ("benchmark", "benchmark"),
        ("scaling_laws", "sweep"), ("bias", "adam"), ("corrections", "corrections"),
    ],
)  # fmt: skip
def test_the_config_of_another_experiment_is_refused(default, section):
    configs = cli.ROOT / "experiments" / "configs"
    default_config, path = configs / f"{default}.py", configs / "arithmetic.py"
    own = parsed(default_config=default_config)
    check_sections(own.config, ["prog"], default_config)
    others = parsed(f"--config={path}", default_config=default_config)
    argv = ["prog", f"--config={path}"]
    with pytest.raises(FlagError, match=f"^--config={path}: has no section {section}: ") as error:
        check_sections(others.config, argv, default_config, optional=("variants",))
    one_line(error)


def test_a_folder_or_a_missing_default_is_no_config_file(tmp_path):
    for path in (tmp_path, tmp_path / "absent.py"):
        with pytest.raises(FlagError, match="no such file"):
            parsed(default_config=path)


def test_nothing_runs_and_nothing_is_written_when_the_config_is_refused(tmp_path):
    config = default_config()
    config.lag.max_lag = -1
    called = []
    with pytest.raises(FieldError, match=r"^lag\.max_lag=-1: "):
        execute(
            lambda *args: called.append(args),
            config,
            str(tmp_path / "out"),
            cli.validate_on_this_machine,
        )
    assert not called
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not pathlib.Path("/proc/self").exists(), reason="needs Linux's /proc")
def test_a_workdir_where_no_folder_can_be_made_is_refused():
    with pytest.raises(FlagError, match="--workdir=/proc/results: no folder can be created"):
        execute(lambda *args: None, default_config(), "/proc/results")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errno.ENOSPC, 1),
        (errno.EDQUOT, 1),
        (errno.EFBIG, 1),
        (errno.EACCES, 2),
        (errno.EROFS, 2),
    ],
)
def test_disk_errors_of_the_run_end_in_one_line(tmp_path, capsys, error, code):
    def main(config, workdir):
        raise OSError(error, os.strerror(error), str(workdir / "metrics.jsonl"))

    with pytest.raises(SystemExit) as exit_, cli._exits_in_one_line("out"):
        execute(main, default_config(), str(tmp_path))
    assert exit_.value.code == code
    _, line = capsys.readouterr().err.splitlines()  # the first line is about devices
    assert line.startswith(f"--workdir=out: {os.strerror(error)} ({tmp_path / 'metrics.jsonl'}): ")


def test_a_workdir_in_use_is_refused_and_free_again_afterwards(tmp_path):
    def run_there(main):
        execute(main, default_config(), str(tmp_path))

    with pytest.raises(FlagError, match="another process uses this folder"):
        run_there(lambda *args: run_there(lambda *args: None))
    run_there(lambda *args: None)


def test_ctrl_c_ends_in_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit) as end, cli._exits_in_one_line(str(tmp_path)):
        raise KeyboardInterrupt
    assert end.value.code == 130
    line = capsys.readouterr().err
    assert (
        line == f"--workdir={tmp_path}: interrupted; "
        "run the same command again to continue from the saved results\n"
    )


def test_other_errors_keep_their_traceback(tmp_path):
    def main(config, workdir):
        (workdir / "absent").read_text()

    with pytest.raises(FileNotFoundError), cli._exits_in_one_line("out"):
        execute(main, default_config(), str(tmp_path))


def start(*args):
    """Runs an experiment as a command of its own."""
    return subprocess.run(
        [sys.executable, "-m", "tests.programs.records_until_the_end", *args],
        cwd=cli.ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_command_with_an_unknown_flag():
    result = start("--wrkdir=out")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "--wrkdir=out: unknown flag: did you mean --workdir?\n"


def test_command_with_a_config_of_another_experiment(tmp_path):
    other = tmp_path / "other.py"
    other.write_text(GOOD + "def get_config(c=get_config()):\n    del c.lag\n    return c\n")
    result = start(f"--workdir={tmp_path / 'out'}", f"--config={other}")
    assert result.returncode == 2
    assert result.stderr == f"--config={other}: has no section lag: give a config like {DEFAULT}\n"
    assert not (tmp_path / "out").exists()


def test_command_that_runs_and_its_second_call_and_one_with_a_bug(tmp_path):
    out, figure = tmp_path / "out", tmp_path / "out" / "figure.png"
    result = start(f"--workdir={out}", "--config.steps=2")
    assert (result.returncode, result.stdout) == (0, f"{out / 'summary.json'}\n{figure}\n"), (
        result.stderr
    )
    assert json.loads((out / "config.json").read_text())["steps"] == 2

    before = {path: path.read_bytes() for path in out.iterdir()}
    (out / "summary.json").write_text('{"loss": 1,}')
    damaged = start(f"--workdir={out}", "--config.steps=2")
    start_of_line = f"--workdir={out}: {out / 'summary.json'} is not JSON ("
    assert damaged.returncode == 2 and damaged.stderr.splitlines()[-1].startswith(start_of_line)
    assert "Traceback" not in damaged.stderr
    (out / "summary.json").write_bytes(before[out / "summary.json"])
    figure.unlink()
    again = start(f"--workdir={out}", "--config.steps=2")
    finished, *paths = again.stdout.splitlines()
    assert finished == f"{out}: finished already; its figures are drawn again from its records"
    assert paths == [str(out / "summary.json"), str(figure)]
    assert {path: path.read_bytes() for path in out.iterdir()} == before

    result = start(f"--workdir={tmp_path / 'bug'}", "--config.seed=13")
    assert result.returncode == 1
    assert "ZeroDivisionError" in result.stderr and "Traceback" in result.stderr


def test_a_field_that_only_the_experiment_can_refuse_is_spelled_as_its_flag(capsys):
    config = default_config()
    with pytest.raises(SystemExit) as end, cli._exits_in_one_line("out", config):
        raise FieldError("lag.max_lag", "give less")
    assert end.value.code == 2
    assert capsys.readouterr().err == "--config.lag.max_lag=0: give less\n"


@contextlib.contextmanager
def tiny_disk(folder: pathlib.Path):
    """Mounts a file system of 16 KiB; skips the test where none can be mounted."""
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", folder], capture_output=True
    )
    if mounted.returncode:
        pytest.skip(f"a file system cannot be mounted here: {mounted.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def test_full_disk_ends_in_one_line_and_leaves_readable_records(tmp_path):
    with tiny_disk(tmp_path / "disk") as disk:
        result = start(f"--workdir={disk}", "--config.steps=1000")
        assert result.returncode == 1
        hint = "free some space; earlier records are intact"
        _, line = result.stderr.splitlines()  # the first line is about devices
        assert line == f"--workdir={disk}: No space left on device: {hint}"
        records = read_jsonl(disk / "metrics.jsonl")
    assert len(records) > 20
    assert [record["step"] for record in records] == list(range(len(records)))
