"""The launch scripts: their shell and YAML; on a real Slurm a sweep and a preempted training."""

import json
import math
import os
import pathlib
import shutil
import subprocess
import sys

import pytest
import yaml

from experiments.common.flag_parsing import load_config
from staleness_grpo.config import validation
from staleness_grpo.runtime.records import read_jsonl
from tests.helpers import killing, slurm

ROOT = killing.ROOT
PROGRAMS = ROOT / "tests" / "programs"
VARIABLES = {"JAX_PLATFORMS": "cpu", "SLURM_EXPORT_ENV": "ALL"}
SCRIPTS = sorted((ROOT / "launch").glob("**/*.sh"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_scripts_are_sound_shell(script):
    subprocess.run(["bash", "-n", script], check=True)
    # launch/requirements-reference.txt brings one beside Python.
    places = os.pathsep.join([str(pathlib.Path(sys.executable).parent), os.environ["PATH"]])
    shellcheck = shutil.which("shellcheck", path=places)
    if not shellcheck:
        pytest.skip("shellcheck is not installed")
    done = subprocess.run(
        [shellcheck, "--shell=bash", "--exclude=SC1091", script],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("words", [[], ["0", "--"], ["x", "--"], ["2", "--workdir=DIR"]])
def test_a_wrong_submission_says_so_in_one_line(words):
    done = subprocess.run(
        ["bash", ROOT / "launch/slurm/sweep.sh", *words],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "bash launch/slurm/sweep.sh N" in done.stderr


@pytest.mark.parametrize("status", [0, 2, 75])
def test_only_a_training_that_was_saved_is_queued_again(tmp_path, status):
    """A false srun runs the step on this machine."""
    for name, text in {
        "srun": '[ "$1" = --kill-on-bad-exit=1 ] && shift && exec "$@"',
        "scontrol": 'echo "$*" > queued',
        ".venv/bin/python": f'echo "$*" > python; exit {status}',
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    variables = {"SLURM_SUBMIT_DIR": str(tmp_path), "SLURM_JOB_ID": "7"}
    done = subprocess.run(
        ["bash", ROOT / "launch/slurm/train.sh", "--workdir=DIR"],
        env=os.environ | variables | {"PATH": f"{tmp_path}:{os.environ['PATH']}"},
        check=False,
    )
    assert done.returncode == status
    assert (tmp_path / "python").read_text() == "-m experiments.train --workdir=DIR\n"
    queued = tmp_path / "queued"
    assert queued.exists() == (status == 75)
    assert status != 75 or queued.read_text() == "requeue 7\n"


def read_jobset():
    return yaml.safe_load((ROOT / "launch/gke/jobset.yaml").read_text())


@pytest.mark.parametrize("words", [["train.sh"], ["sweep.sh", "2", "--", "--workdir=DIR"]], ids=str)
def test_a_job_without_an_environment_says_how_to_make_it(tmp_path, words):
    shutil.copytree(ROOT / "launch/slurm", tmp_path / "launch/slurm")
    done = subprocess.run(
        ["bash", tmp_path / "launch/slurm" / words[0], *words[1:]],
        cwd=tmp_path,
        env=os.environ | {"SLURM_SUBMIT_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert f"{tmp_path} has no .venv: make it by bash launch/setup.sh" in done.stderr


def test_the_jobset_starts_one_process_on_each_host_of_the_slice():
    jobset = read_jobset()
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    (replicated,) = jobset["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    assert job["parallelism"] == job["completions"] and job["completionMode"] == "Indexed"
    pod = job["template"]["spec"]
    assert pod["subdomain"] == jobset["metadata"]["name"]  # by which the pods find each other
    (container,) = pod["containers"]
    chips = int(container["resources"]["limits"]["google.com/tpu"]) * job["completions"]
    topology = [
        int(side) for side in pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x")
    ]
    assert chips == math.prod(topology)
    assert container["workingDir"] == "/app"  # as in launch/gke/Dockerfile
    interpreter, *flags = container["command"][:1] + container["command"][3:]
    assert interpreter == ".venv/bin/python" and "--coordinator=auto" in flags
    overrides = dict(
        flag[len("--config.") :].split("=") for flag in flags if flag.startswith("--config.")
    )
    config = load_config(ROOT / "experiments/configs/arithmetic.py")
    config.update_from_flattened_dict({name: int(value) for name, value in overrides.items()})
    validation.validate(config, num_devices=chips)


def test_the_jobset_holds_a_job_as_kubernetes_knows_it():
    kubernetes_validate = pytest.importorskip(
        "kubernetes_validate", reason="kubernetes-validate is not installed"
    )
    template = read_jobset()["spec"]["replicatedJobs"][0]["template"]
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "hosts"}, **template}
    kubernetes_validate.validate(job, "1.30", strict=True)


def test_the_jobset_has_the_fields_of_jobset_and_no_other():
    models = pytest.importorskip(
        "kubeflow_trainer_api.models", reason="kubeflow-trainer-api is not installed"
    )
    jobset = read_jobset()
    # A model leaves out what it does not know, so an unknown field would be missing.
    assert models.JobsetV1alpha2JobSet.from_dict(jobset).to_dict() == jobset


def jobset_action(exit_code):
    """Returns what JobSet does when a pod ends with a code, by the rules of its documentation."""
    spec = read_jobset()["spec"]
    job = spec["replicatedJobs"][0]["template"]["spec"]
    assert job["backoffLimit"] == 0
    reason = "BackoffLimitExceeded"
    for rule in job["podFailurePolicy"]["rules"]:
        on, action = rule["onExitCodes"], rule["action"]
        assert (on["operator"], action) == ("In", "FailJob")
        if exit_code in on["values"]:
            reason = "PodFailurePolicy"
    for rule in spec["failurePolicy"]["rules"]:
        if reason in rule["onJobFailureReasons"]:
            return rule["action"]
    return "RestartJobSet"


def test_only_wrong_arguments_fail_the_jobset_and_all_else_starts_it_again():
    jobset = read_jobset()
    assert jobset_action(2) == "FailJobSet"
    assert {jobset_action(code) for code in (1, 75, 134, 137, 143)} == {"RestartJobSet"}
    assert jobset["spec"]["failurePolicy"]["maxRestarts"] > 0
    job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    pod = job["template"]["spec"]
    names = {rule["onExitCodes"]["containerName"] for rule in job["podFailurePolicy"]["rules"]}
    assert names == {container["name"] for container in pod["containers"]}
    assert pod["restartPolicy"] == "Never"  # which a podFailurePolicy needs


@pytest.fixture
def cluster(tmp_path):
    reason = slurm.missing()
    if reason is not None:
        pytest.skip(f"no Slurm here: {reason}")
    with slurm.cluster(tmp_path / "slurm") as cluster:
        yield cluster


def cells(workdir):
    """Returns the records of both maps without their clock, by file name."""
    return {
        path.name: [{**record, "time_cell": None} for record in read_jsonl(path)]
        for path in sorted(workdir.glob("cells*.jsonl"))
        if "share" not in path.name
    }


@pytest.mark.slow
def test_an_array_of_shares_and_its_figures_are_the_sweep(cluster, tmp_path):
    config = f"--config={PROGRAMS}/sweep_array_config.py"
    script = ["bash", str(ROOT / "launch/slurm/sweep.sh"), "3", f"--output={tmp_path}/%x-%A_%a.out"]
    words = [*script, "--", config, f"--workdir={tmp_path}/array"]
    array, figures = cluster.command(*words, **VARIABLES).split()
    state = cluster.state(figures)
    assert state["JobState"] == "PENDING" and "afterok" in state["Dependency"]
    cluster.wait_for(lambda: cluster.states(figures) == ["COMPLETED"], 300, "the figures")
    assert set(cluster.states(array)) == {"COMPLETED"} and len(cluster.states(array)) == 3
    parts = sorted((tmp_path / "array").glob("cells*.share-*-of-3.jsonl"))
    sizes = [path.read_bytes().count(b"\n") for path in parts]
    assert [path.name for path in parts] == [
        f"{stem}.share-{i}-of-3.jsonl" for stem in ("cells-cyclic", "cells") for i in (1, 2, 3)
    ]
    assert sizes == [2, 2, 2, 8, 8, 8]
    assert (tmp_path / "array" / "scaling_reward.png").exists()

    sweep = [".venv/bin/python", "-m", "experiments.sweep", config, f"--workdir={tmp_path}/whole"]
    subprocess.run(sweep, cwd=ROOT, check=True)
    assert cells(tmp_path / "array") == cells(tmp_path / "whole")
    summaries = [(tmp_path / name / "summary.json").read_bytes() for name in ("array", "whole")]
    assert summaries[0] == summaries[1]


@pytest.mark.slow
def test_an_array_over_a_text_task_is_the_sweep(cluster, tmp_path):
    """Each cell is a training of the loop."""
    pytest.importorskip("tokenizers", reason="the extra hf is not installed")
    from tests.helpers import byte_model

    (tmp_path / "model").mkdir()
    byte_model.write(tmp_path / "model")
    config = [
        f"--config={PROGRAMS}/text_map_config.py",
        f"--config.policy.checkpoint={tmp_path}/model",
    ]
    script = ["bash", str(ROOT / "launch/slurm/sweep.sh"), "2", f"--output={tmp_path}/%x-%A_%a.out"]
    words = [*script, "--", *config, f"--workdir={tmp_path}/array"]
    _, figures = cluster.command(*words, **VARIABLES).split()
    cluster.wait_for(lambda: cluster.states(figures) == ["COMPLETED"], 600, "the figures")
    sweep = [".venv/bin/python", "-m", "experiments.sweep", *config]
    subprocess.run([*sweep, f"--workdir={tmp_path}/whole"], cwd=ROOT, check=True)
    assert cells(tmp_path / "array") == cells(tmp_path / "whole")
    assert len(cells(tmp_path / "array")["cells.jsonl"]) == 4


@pytest.mark.slow
def test_a_preempted_training_saves_is_queued_again_and_ends_as_if_it_never_was(cluster, tmp_path):
    """Two tasks find each other through Slurm; the step gets SIGTERM, as at a preemption."""
    flags = [f"--config={PROGRAMS}/preempted_config.py", "--config.mesh.data=4"]
    variables = VARIABLES | {"JAX_NUM_CPU_DEVICES": "2"}
    options = ["--ntasks-per-node=2", f"--output={tmp_path}/%j.out"]

    def submit(name):
        script = [str(ROOT / "launch/slurm/train.sh"), *flags, f"--workdir={tmp_path / name}"]
        words = ["sbatch", "--parsable", f"--chdir={ROOT}", *options, *script]
        return cluster.command(*words, **variables)

    job = submit("preempted")
    preempted = tmp_path / "preempted"
    cluster.wait_for(lambda: killing.num_records(preempted) >= 20, 120, "twenty learner steps")
    cluster.command("scancel", "--signal=TERM", job)
    cluster.wait_for(lambda: cluster.state(job)["Restarts"] == "1", 60, "queued again")
    printed = (tmp_path / f"{job}.out").read_text()
    assert "run the same command to go on" in printed and f"job {job} is queued again" in printed
    assert 20 <= killing.num_records(preempted) < 400
    # A job that was queued again may begin after two minutes, by default. It needs a few seconds.
    cluster.command("scontrol", "update", f"jobid={job}", "StartTime=now+10seconds")
    cluster.wait_for(lambda: cluster.state(job)["JobState"] == "COMPLETED", 240, "the end")
    whole = submit("whole")
    cluster.wait_for(lambda: cluster.state(whole)["JobState"] == "COMPLETED", 240, "the whole run")
    assert killing.ending(preempted) == killing.ending(tmp_path / "whole")
    environment = json.loads((tmp_path / "whole" / "environment.json").read_text())
    assert len(environment["devices"]) == 4  # of both tasks
