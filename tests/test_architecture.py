"""The rooms import what docs/architecture.md allows them, and there is no circle."""

import ast
import graphlib
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1]
BASE = {"errors", "types"}
# What each room may import, beside itself; rooms of docs/architecture.md from top to bottom.
ALLOWED = {
    "errors": set(),
    "types": set(),
    "runtime": BASE,
    "policy": BASE | {"runtime"},
    "tasks": BASE | {"runtime", "policy"},
    "objective": BASE,
    "staleness": BASE | {"runtime"},
    "logs": BASE | {"runtime"},
    "scaling": BASE,
    "pipeline": BASE,
    "bias": BASE | {"runtime", "objective", "tasks", "scaling"},
    "training": BASE | {"runtime", "policy", "tasks", "objective", "staleness", "pipeline"},
    "sweeps": BASE | {"runtime", "policy", "tasks", "scaling", "training"},
    "config": BASE
    | {"runtime", "policy", "tasks", "objective", "staleness", "scaling", "bias", "training"},
}
MODULES = sorted((ROOT / "staleness_grpo").rglob("*.py"))


def imports(path: pathlib.Path) -> set[str]:
    """Returns the modules that a file imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def room(module: str) -> str:
    """Returns the room of a module of the package; empty for the package itself."""
    return module.split(".")[1] if "." in module else ""


def dotted(path: pathlib.Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@pytest.mark.parametrize("path", MODULES, ids=dotted)
def test_a_module_imports_what_its_room_may(path):
    own = room(dotted(path))
    if not own:
        return  # the package itself only names its public modules
    rooms = {room(name) for name in imports(path) if name.startswith("staleness_grpo.")}
    assert rooms - {own} <= ALLOWED[own]


@pytest.mark.parametrize("path", MODULES, ids=dotted)
def test_the_package_knows_no_experiment_and_no_flag(path):
    tops = {name.split(".")[0] for name in imports(path)}
    assert not tops & {"experiments", "tests", "absl", "matplotlib"}


@pytest.mark.parametrize("path", MODULES, ids=dotted)
def test_only_the_policy_imports_flax_and_three_rooms_import_no_jax(path):
    own, tops = room(dotted(path)), {name.split(".")[0] for name in imports(path)}
    assert own == "policy" or "flax" not in tops
    assert own not in ("logs", "scaling", "pipeline") or "jax" not in tops
    assert own == "pipeline" or "simpy" not in tops


EXPERIMENT_ROOMS = {
    "advise": {"sweep"},
    "async_train": {"train"},
    "clock": {"pipeline"},
    "corrections": {"bias", "sweep"},
    "compare": {"train"},
    "guard": {"sweep"},
    "law": {"sweep"},
    "paired_bias": {"train"},
    "performance": {"async_train"},
    "sweep": {"paired_bias", "train"},
}
EXPERIMENTS = sorted((ROOT / "experiments").glob("*/*.py"))


@pytest.mark.parametrize("path", EXPERIMENTS, ids=dotted)
def test_a_room_of_the_experiments_imports_the_rooms_it_may(path):
    own = room(dotted(path))
    rooms = {room(name) for name in imports(path) if name.startswith("experiments.")}
    assert rooms - {own, "common", "configs"} <= EXPERIMENT_ROOMS.get(own, set())


def test_there_is_no_circle_of_imports():
    names = {dotted(path): path for path in MODULES}
    graph = {
        name: {other for other in imports(path) if other in names and other != name}
        for name, path in names.items()
        if name != "staleness_grpo"
    }
    packages = {name for name, path in names.items() if path.name == "__init__.py"}
    # A name imported from a package is a module of its own: the package itself adds no dependency.
    graph = {name: {o for o in others if o not in packages} for name, others in graph.items()}
    assert list(graphlib.TopologicalSorter(graph).static_order())


def test_no_file_is_longer_than_350_lines():
    files = [
        f for top in ("staleness_grpo", "experiments", "tests") for f in (ROOT / top).rglob("*.py")
    ]
    long = {dotted(f): len(f.read_text().splitlines()) for f in files}
    assert {name: lines for name, lines in long.items() if lines > 350} == {}
