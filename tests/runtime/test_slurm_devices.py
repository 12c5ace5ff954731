"""Which GPUs a task of a Slurm step uses, and addresses of process 0 that cannot be used."""

import os
import socket

import jax
import pytest

from staleness_grpo.errors import FlagError
from staleness_grpo.runtime import distributed


def step(*, task=0, node=0, tasks="1(x2)", visible=None, on_node=8):
    """Returns the variables that Slurm sets for a task. `task` is its number on the node."""
    environment = {
        "SLURM_JOB_ID": "1",
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NTASKS": "2",
        "SLURM_PROCID": "0",
        "SLURM_LOCALID": str(task),
        "SLURM_NODEID": str(node),
        "SLURM_STEP_TASKS_PER_NODE": tasks,
    }
    if on_node:
        environment["SLURM_GPUS_ON_NODE"] = str(on_node)
    if visible is not None:
        environment["CUDA_VISIBLE_DEVICES"] = visible
    return environment


ALL = "0,1,2,3,4,5,6,7"


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        (step(visible=ALL), list(range(8))),  # --nodes=2 --gpus-per-node=8, one task a node
        (step(visible=None), list(range(8))),  # the variable of CUDA is not set everywhere
        (step(task=3, tasks="8(x2)", visible=ALL), [3]),  # a task for each GPU, all visible
        (step(task=1, tasks="4(x2)", visible=ALL), [2, 3]),
        (step(task=1, tasks="4(x2)", visible="2,3"), [0, 1]),  # Slurm gave it two of the eight
        (step(task=1, tasks="2,1(x3)", visible=ALL), [4, 5, 6, 7]),
        (step(node=2, tasks="2,1(x3)", visible=ALL), list(range(8))),
        (step(visible="GPU-1a,GPU-2b", on_node=2), [0, 1]),
        (step(on_node=0), None),
        (step(visible="", on_node=0), None),
        (step(visible=ALL) | {"JAX_LOCAL_DEVICE_IDS": "5"}, None),
        ({"CUDA_VISIBLE_DEVICES": ALL}, None),
    ],
)
def test_a_task_uses_all_gpus_that_are_its_own(environment, expected):
    assert distributed.slurm_device_ids(environment) == expected


def test_gpus_that_cannot_be_shared_equally_are_refused():
    with pytest.raises(FlagError, match="3 tasks on this node cannot share its 8 GPUs equally"):
        distributed.slurm_device_ids(step(tasks="3", visible=ALL))


def test_jax_gets_them_and_would_take_one(monkeypatch):
    for name, value in step(visible=ALL).items():
        monkeypatch.setenv(name, value)
    calls = []
    monkeypatch.setattr(
        jax.distributed, "initialize", lambda *args, **fields: calls.append((args, fields))
    )
    hosts = distributed.find(dict.fromkeys(distributed.VARIABLES), os.environ)
    assert hosts == distributed.Hosts(distributed.AUTO)
    distributed.start(hosts, heartbeat_seconds=60)
    ((arguments, _),) = calls
    assert arguments == (None, None, None, list(range(8)))
    # What JAX does by itself. If this fails, JAX has changed, and the function may be needless.
    from jax._src.clusters import ClusterEnv

    found = ClusterEnv.auto_detect_unset_distributed_params("localhost:1", 2, 0, None, "slurm", 10)
    assert found[-1] == [0]


def test_an_address_that_cannot_be_used_is_refused_in_one_line():
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        address = f"127.0.0.1:{busy.getsockname()[1]}"
        with pytest.raises(FlagError, match=f"^--coordinator={address}: .*give its host and a"):
            distributed.check_coordinator(address, process_id=0)
        distributed.check_coordinator(address, process_id=1)  # process 0 has it
    distributed.check_coordinator(address, process_id=0)
    with pytest.raises(FlagError, match="no machine has this name"):
        distributed.check_coordinator("no-such-host.invalid:1234", process_id=1)
    for port in ("0", "65536", "99999"):
        flags = dict(coordinator=f"localhost:{port}", num_processes=2, process_id=0)
        with pytest.raises(FlagError, match="with a port from 1 to 65535"):
            distributed.find(flags, {})
