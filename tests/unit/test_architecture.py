"""Who may import whom, who owns our names, and what an import may do."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).parents[2]
OURS = ("client", "common", "server", "simulations")
MAY_IMPORT = {
    "common": {"common"},
    "client": {"client", "common"},
    "server": {"server", "common"},
    "simulations": set(OURS),
}
# Flower's public API; all else of it may change in any release.
PUBLIC_FLOWER = ("flwr.app", "flwr.clientapp", "flwr.serverapp", "flwr.simulation")
PRIVATE_FLOWER = "common/flower.py"


def modules(*packages: str) -> Iterator[Path]:
    for package in packages or OURS:
        yield from sorted((ROOT / package).rglob("*.py"))


@cache
def nodes(path: Path) -> list[ast.AST]:
    return list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports anywhere, functions and type checks included."""
    for node in nodes(path):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            yield node.module or ""


def within(name: str, packages: tuple[str, ...]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def test_imports_point_inwards() -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for package in OURS
        for path in modules(package)
        for name in imports(path)
        if name.split(".")[0] in {*OURS, "tests"} - MAY_IMPORT[package]
    ]
    assert wrong == []


def test_flowers_private_names_are_touched_in_one_place() -> None:
    users = {
        str(path.relative_to(ROOT))
        for path in modules()
        for name in imports(path)
        if within(name, ("flwr",)) and not within(name, PUBLIC_FLOWER)
    }
    assert users == {PRIVATE_FLOWER}


def test_nothing_that_runs_code_from_data_is_imported() -> None:
    forbidden = ("pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve")
    assert not [p for p in modules() for name in imports(p) if within(name, forbidden)]


def calls(path: Path) -> Iterator[str]:
    for node in nodes(path):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func)


def test_nothing_loads_a_pickle_or_seeds_a_global_generator() -> None:
    forbidden = {
        "torch.load", "np.load", "torch.manual_seed", "np.random.seed", "random.seed",
        "np.random.normal", "torch.randn", "torch.normal", "eval", "exec",
    }  # fmt: skip
    found = {(str(p.relative_to(ROOT)), c) for p in modules() for c in calls(p)}
    assert not {(place, call) for place, call in found if call in forbidden}


# Who makes streams that anybody can compute, and for what: an adapter's public start; batches of
# jobs without privacy; simulations. No site and no server is among them.
PUBLIC_STREAMS = {
    "common/initial.py",
    "common/privacy/mechanism.py",
    "common/privacy/stream.py",
    "simulations/seeded.py",
}
# Generators that draw public examples, and pauses between calls.
OTHER_RANDOMNESS = {
    "client/estimate.py",
    "client/rehearsal.py",
    "client/session.py",
    "client/upkeep.py",
}


def test_seeded_streams_are_made_in_simulations_and_for_what_is_public_alone() -> None:
    named = {
        str(path.relative_to(ROOT))
        for path in modules()
        if "public_keys" in path.read_text(encoding="utf-8")
    }
    assert named == PUBLIC_STREAMS
    for path in modules("common", "client", "server"):
        assert not any(within(name, ("simulations",)) for name in imports(path))
        assert "seeded_keys" not in path.read_text(encoding="utf-8"), path


def test_no_other_generator_draws_at_a_site() -> None:
    generators = ("np.random.", "numpy.random.", "random.", "torch.rand", "torch.Generator")
    found = {
        str(path.relative_to(ROOT))
        for path in modules("common", "client")
        for call in calls(path)
        if call.startswith(generators)
    }
    assert found == OTHER_RANDOMNESS


def test_our_names_are_ours_alone() -> None:
    owners = metadata.packages_distributions()
    for name in OURS:
        assert set(owners.get(name, ["veiltune"])) <= {"veiltune"}, name


def test_the_modules_that_run_are_those_of_this_checkout() -> None:
    code = f"import {', '.join(OURS)}; print(*(m.__file__ for m in ({', '.join(OURS)})))"
    assert run(code).split() == [str(ROOT / name / "__init__.py") for name in OURS]


def run(code: str, **environment: str) -> str:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("FLWR_", "RAY_", "GRPC_"))}
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=kept | environment,
        check=True,
        capture_output=True,
        text=True,
    ).stdout


# Whatever opens a socket or looks up a name while it is imported is stopped by this.
NO_NETWORK = """
import socket
def refused(*_, **__):
    raise SystemExit("network reached at import")
socket.socket.connect = socket.socket.connect_ex = refused
socket.create_connection = socket.getaddrinfo = refused
"""


# Each entry in a process of its own, forked from one that has loaded all that takes seconds and is
# not Flower.
ENTRIES = ("client.app", "server.app", "common.flower")


def test_telemetry_is_off_before_flower_is_imported_and_no_import_reaches_the_network() -> None:
    code = f"""{NO_NETWORK}
import importlib, importlib.abc, os, sys
import dp_accounting.pld, opacus, peft, torch, transformers
assert "flwr" not in sys.modules
class Watch(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == "flwr":
            print(os.environ.get("FLWR_TELEMETRY_ENABLED"), os.environ.get(
                "FLWR_DISABLE_UPDATE_CHECK"), os.environ.get("RAY_USAGE_STATS_ENABLED"), flush=True)
sys.meta_path.insert(0, Watch())
for entry in {ENTRIES}:
    child = os.fork()
    if not child:
        importlib.import_module(entry)
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        raise SystemExit(entry)
"""
    assert run(code, FLWR_TELEMETRY_ENABLED="1").splitlines() == ["0 1 0"] * len(ENTRIES)
