"""The launch scripts: their shell and YAML, and on a real Slurm an array with figures, and a preempted training."""

import json
import math
import shutil
import subprocess

import pytest
import yaml

from experiments import cli
from staleness_grpo import metrics, validation
from tests import killing, slurm

ROOT = killing.ROOT
SCRIPTS = sorted((ROOT / "launch").glob("**/*.sh"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_scripts_are_sound_shell(script):
    subprocess.run(["bash", "-n", script], check=True)
    if not shutil.which("shellcheck"):
        pytest.skip("shellcheck is not installed")
    done = subprocess.run(
        ["shellcheck", "--shell=bash", "--exclude=SC1091", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("words", [[], ["0", "--"], ["x", "--"], ["2", "--workdir=DIR"]])
def test_a_wrong_submission_says_so_in_one_line(words):
    done = subprocess.run(["bash", ROOT / "launch/slurm/sweep.sh", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "bash launch/slurm/sweep.sh N" in done.stderr


def test_the_jobset_starts_one_process_on_each_host_of_the_slice():
    jobset = yaml.safe_load((ROOT / "launch/gke/jobset.yaml").read_text())
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    (replicated,) = jobset["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    assert job["parallelism"] == job["completions"] and job["completionMode"] == "Indexed"
    pod = job["template"]["spec"]
    assert pod["subdomain"] == jobset["metadata"]["name"]  # by which the pods find each other
    (container,) = pod["containers"]
    chips = int(container["resources"]["limits"]["google.com/tpu"]) * job["completions"]
    topology = [int(side) for side in pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x")]
    assert chips == math.prod(topology)
    interpreter, *flags = container["command"][:1] + container["command"][3:]
    assert interpreter == ".venv/bin/python" and "--coordinator=auto" in flags
    overrides = dict(flag[len("--config.") :].split("=") for flag in flags if flag.startswith("--config."))
    config = cli.load_config(ROOT / "experiments/configs/arithmetic.py")
    config.update_from_flattened_dict({name: int(value) for name, value in overrides.items()})
    validation.validate(config, num_devices=chips)


def test_the_jobset_holds_a_job_as_kubernetes_knows_it():
    kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    jobset = yaml.safe_load((ROOT / "launch/gke/jobset.yaml").read_text())
    template = jobset["spec"]["replicatedJobs"][0]["template"]
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "hosts"}, **template}
    kubernetes_validate.validate(job, "1.30", strict=True)


@pytest.fixture
def cluster(tmp_path):
    reason = slurm.missing()
    if reason is not None:
        pytest.skip(f"no Slurm here: {reason}")
    with slurm.cluster(tmp_path / "slurm") as cluster:
        yield cluster


SWEEP = """
from ml_collections import ConfigDict
from experiments.configs import scaling_laws
def get_config():
    config = scaling_laws.get_config()
    config.update(dict(steps=20, num_prompts=4, group_size=4, eval_every=5))
    config.warm_start.steps = 0
    config.policy.update(dict(num_layers=1, d_model=16, num_heads=2, num_kv_heads=2, head_dim=8, d_ff=16))
    config.task = ConfigDict(dict(name="enumerable", vocab_size=5, max_response_length=4, num_prompts=8))
    config.sweep.update(dict(max_lags=(0, 1, 4), learning_rates=(1e-3, 1e-2), horizons=(10, 20), seeds=(0, 1, 2, 3)))
    config.sweep.num_workers = 1
    config.variants = ConfigDict(dict(cyclic=dict(lag=dict(schedule="cyclic"), sweep=dict(seeds=(0,)))))
    return config
"""
VARIABLES = {"JAX_PLATFORMS": "cpu", "SLURM_EXPORT_ENV": "ALL"}


def sweep_command(tmp_path, *words):
    return ["-m", "experiments.sweep", f"--config={tmp_path}/config.py", *words]


def cells(workdir):
    """The records of both maps without their clock."""
    found = {}
    for path in sorted(workdir.glob("cells*.jsonl")):
        if "share" not in path.name:
            found[path.name] = [{**record, "time_cell": None} for record in metrics.read_jsonl(path)]
    return found


@pytest.mark.slow
def test_an_array_of_shares_and_its_figures_are_the_sweep(cluster, tmp_path):
    (tmp_path / "config.py").write_text(SWEEP)
    words = [f"--config={tmp_path}/config.py", f"--workdir={tmp_path}/array"]
    script = ["bash", str(ROOT / "launch/slurm/sweep.sh"), "3", f"--output={tmp_path}/%x-%A_%a.out"]
    array, figures = cluster.command(*script, "--", *words, **VARIABLES).split()
    assert cluster.state(figures)["JobState"] == "PENDING" and "afterok" in cluster.state(figures)["Dependency"]
    cluster.wait_for(lambda: cluster.states(figures) == ["COMPLETED"], 300, "the figures")
    assert set(cluster.states(array)) == {"COMPLETED"} and len(cluster.states(array)) == 3
    parts = sorted((tmp_path / "array").glob("cells*.share-*-of-3.jsonl"))
    sizes = [path.read_bytes().count(b"\n") for path in parts]
    assert [path.name for path in parts] == [
        f"{stem}.share-{i}-of-3.jsonl" for stem in ("cells-cyclic", "cells") for i in (1, 2, 3)
    ]
    assert sizes == [2, 2, 2, 8, 8, 8]
    assert (tmp_path / "array" / "scaling_reward.png").exists()

    subprocess.run([".venv/bin/python", *sweep_command(tmp_path, f"--workdir={tmp_path}/whole")], cwd=ROOT, check=True)
    assert cells(tmp_path / "array") == cells(tmp_path / "whole")
    assert (tmp_path / "array/summary.json").read_bytes() == (tmp_path / "whole/summary.json").read_bytes()


TRAINING = """
from staleness_grpo import config as config_lib
from ml_collections import ConfigDict
def get_config():
    config = config_lib.default()
    config.update(dict(steps=400, num_prompts=4, group_size=4, eval_every=50))
    config.warm_start.steps = 0
    config.policy.update(dict(num_layers=1, d_model=16, num_heads=2, num_kv_heads=2, head_dim=8, d_ff=16))
    config.lag.max_lag = 3
    config.checkpoint.save_every = 1000
    config.task = ConfigDict(dict(name="enumerable", vocab_size=5, max_response_length=4, num_prompts=8))
    return config
"""


@pytest.mark.slow
def test_a_preempted_training_saves_is_queued_again_and_ends_as_if_it_never_was(cluster, tmp_path):
    """Two tasks that find each other through Slurm; SIGTERM to the step, as at a preemption."""
    (tmp_path / "config.py").write_text(TRAINING)
    flags = [f"--config={tmp_path}/config.py", "--config.mesh.data=4"]
    variables = VARIABLES | {"JAX_NUM_CPU_DEVICES": "2"}
    options = ["--ntasks-per-node=2", f"--output={tmp_path}/%j.out"]

    def submit(name):
        script = [str(ROOT / "launch/slurm/train.sh"), *flags, f"--workdir={tmp_path / name}"]
        words = ["sbatch", "--parsable", f"--chdir={ROOT}", *options, *script]
        return cluster.command(*words, **variables)

    job = submit("preempted")
    cluster.wait_for(lambda: killing.num_records(tmp_path / "preempted") >= 20, 120, "twenty learner steps")
    cluster.command("scancel", "--signal=TERM", job)
    cluster.wait_for(lambda: cluster.state(job)["Restarts"] == "1", 60, "queued again")
    said = (tmp_path / f"{job}.out").read_text()
    assert "the same command goes on from there" in said and f"job {job} is queued again" in said
    assert 20 <= killing.num_records(tmp_path / "preempted") < 400
    # Slurm lets two minutes pass before a job that was queued again may begin; a few seconds it needs.
    cluster.command("scontrol", "update", f"jobid={job}", "StartTime=now+10seconds")
    cluster.wait_for(lambda: cluster.state(job)["JobState"] == "COMPLETED", 240, "the end")
    whole = submit("whole")
    cluster.wait_for(lambda: cluster.state(whole)["JobState"] == "COMPLETED", 240, "the end of the unbroken run")
    assert killing.ending(tmp_path / "preempted") == killing.ending(tmp_path / "whole")
    environment = json.loads((tmp_path / "whole" / "environment.json").read_text())
    assert len(environment["devices"]) == 4  # of both tasks
