"""The two apps under ``flwr run`` in Flower's own local simulation, by its own commands.

Flower starts everything in processes of its own: a SuperLink, the ServerApp, Ray and its actors.
The bundle that it ships has no code of ours, so what runs is what is installed.
"""

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tomli_w

from client.account import open_account
from client.config import load_home
from common.audit.recompute import check_outcome
from common.data.records import Record
from common.job import Job, SignedJob, sign_job
from server.checkpoint import Checkpoints
from simulations.homes import write_home

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is in the dev extra"),
]

APP = """\
[project]
name = "veiltune-stock"
version = "1.0.0"
description = "Names the apps that are installed"
license = "Apache-2.0"

[tool.flwr.app]
publisher = "veiltune"
fab-include = ["*.md"]

[tool.flwr.app.components]
serverapp = "server.app:app"
clientapp = "client.app:app"

[tool.flwr.app.config]
job = ""
signer = ""
database = ""
out = ""
"""


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


@contextmanager
def superlink(home: Path, environment: dict[str, str]) -> Iterator[int]:
    """Flower's SuperLink in simulation mode; it and all that it starts end with the block."""
    port, log = free_port(), (home / "superlink.log").open("wb")
    command = [
        sys.executable, "-c", "from flwr.superlink.cli.flower_superlink import flower_superlink; "
        "flower_superlink()",
        "--insecure", "--simulation", "--isolation", "subprocess",
        "--host", "127.0.0.1", "--port", str(port),
    ]  # fmt: skip
    process = subprocess.Popen(
        command, cwd=home, env=environment, stdout=log, stderr=log, start_new_session=True
    )
    try:
        until(lambda: is_healthy(port) or process.poll() is not None, 60)
        assert process.poll() is None, (home / "superlink.log").read_text()[-2000:]
        yield port
    finally:
        end_group(process)
        log.close()


def end_group(process: "subprocess.Popen[bytes]") -> None:
    """End the process and all that it started; it may have ended by itself."""
    for how in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, how)
        with suppress(subprocess.TimeoutExpired):
            process.wait(20)
            return


def is_healthy(port: int) -> bool:
    try:
        return bool(httpx.get(f"http://127.0.0.1:{port}/health", timeout=1).is_success)
    except httpx.HTTPError:
        return False


def until(claim: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not claim():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.2)


def flower_home(folder: Path, port: int, sites: int) -> None:
    options = {
        "num-supernodes": sites,
        "backend": {"client-resources": {"num-cpus": 1}, "init-args": {"num-cpus": 2}},
    }
    link = {"address": f"127.0.0.1:{port}", "insecure": True, "options": options}
    config = {"superlink": {"default": "here", "here": link}}
    (folder / "config.toml").write_text(tomli_w.dumps(config))


def test_flowers_own_simulation_runs_the_same_job_to_a_true_result(
    job: Callable[..., Job],
    operator: Any,  # noqa: ANN401 -- an Ed25519 key
    rows: Callable[..., list[tuple[str, str]]],
    tmp_path: Path,
) -> None:
    signed = sign_job(job(training={"rounds": 2, "deadline_s": 240}), operator)
    homes, flower, app = (tmp_path / name for name in ("homes", "flower", "app"))
    for folder in (homes, flower, app):
        folder.mkdir()
    for place, site in enumerate(signed.job.sites):
        given = [Record(text, label) for text, label in rows(40, offset=100 * place)]
        write_home(homes / site, site, given, signed.job, signer=signed.signer, threads=1)
    (app / "pyproject.toml").write_text(APP)
    (app / "README.md").write_text("It holds no code.\n")
    environment = {
        **os.environ,
        # Flower starts its own commands by name; this environment need not be the active one.
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "FLWR_HOME": str(flower),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "VEILTUNE_HOMES": str(homes),
    }
    with superlink(flower, environment) as port:
        flower_home(flower, port, len(signed.job.sites))
        run_job(app, tmp_path, signed, environment)
    result, claims = check_outcome(tmp_path / "out")
    assert all(claim.passed for claim in claims)
    assert result.job_sha256 == signed.job.sha256
    assert [site.steps for site in result.sites] == [4] * len(signed.job.sites)
    for site in signed.job.sites:
        charges = open_account(load_home(homes / site, site)).charges()
        assert [(c.round, c.event.steps, c.is_released) for c in charges] == [
            (1, 2, True),
            (2, 2, True),
        ]
    state = Checkpoints(f"sqlite:///{tmp_path / 'state.db'}")
    receipts = state.receipts(signed.job.sha256)
    assert len(receipts) == 2 * len(signed.job.sites)
    assert all(receipt.accepted for receipt in receipts)
    _, final = state.latest(signed.job.sha256) or (0, b"")
    assert np.isfinite(np.frombuffer(final, dtype="<f4")).all()


def run_job(app: Path, folder: Path, signed: SignedJob, environment: dict[str, str]) -> None:
    """``flwr run`` to the run's end, from an empty folder, which would be bundled otherwise."""
    config = {
        "job": signed.to_bytes().decode(),
        "signer": signed.signer,
        "database": f"sqlite:///{folder / 'state.db'}",
        "out": str(folder / "out"),
    }
    (folder / "run.toml").write_text(tomli_w.dumps(config))
    empty = folder / "empty"
    empty.mkdir()
    flwr = shutil.which("flwr", path=str(Path(sys.executable).parent))
    assert flwr is not None
    done = subprocess.run(
        [flwr, "run", str(app), "here", "--stream", "--run-config", str(folder / "run.toml")],
        cwd=empty,
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout + done.stderr
