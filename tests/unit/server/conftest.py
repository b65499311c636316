"""Outcomes to look at, signed jobs, and a server whose jobs close rounds without training."""

import io
import logging
import math
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.serverapp import Grid

from common import log
from common.config import parse
from common.job import Job, SignedJob, sign_job
from common.keys import load_operator_key
from common.result import Result, privacy_statement, site_result
from server.checkpoint import Checkpoints, RoundRecord
from server.daemon import Daemon
from server.enrolment import init_server
from server.worker import Trainer

Outcome = tuple[Result, Job]
MakeOutcome = Callable[..., Outcome]

OPERATOR = Ed25519PrivateKey.from_private_bytes(b"\x07" * 32)


def job_of(
    labels: list[str], sites: dict[str, int], rounds: int, mode: str, task: str = "seq-cls"
) -> Job:
    privacy: dict[str, Any] = {"mode": mode, "sampling_rate": 0.04}
    if mode == "site":
        privacy |= {"epsilon": 3.0, "delta": 1e-5, "clip_norm": 0.75}
    sections = {
        "job": {
            "name": "discharge-notes",
            "description": "Which department wrote this note?",
            "task": task,
        },
        "model": {"base": "/home/operator/models/minilm", "sha256": "ef" * 32},
        "adapter": {"targets": ["query", "value"]},
        "training": {"rounds": rounds, "local_steps": 8, "learning_rate": 0.5},
        "privacy": privacy,
        "data": {"name": "notes", "labels": labels, "population": sites},
        "evaluation": {"data": "builtin:wards", "records": 1200},
    }
    return parse(Job, sections, "test")


def make_outcome(
    *,
    classes: int | list[str] = 8,
    rounds: int = 12,
    mode: str = "site",
    seeded: bool = False,
    start: bool = True,
    steps: dict[str, int] | None = None,
) -> Outcome:
    """A learning curve drawn by hand; the privacy figures come from the accountant."""
    labels = classes if isinstance(classes, list) else [f"label {i}" for i in range(classes)]
    sites = {"riverside": 4200, "st-anne": 2600, "northgate": 1350}
    job = job_of(labels, sites, rounds, mode)
    privacy = privacy_statement(job, seeded=seeded)
    all_steps = rounds * 8
    taken = dict.fromkeys(sites, all_steps) | (steps or {})
    rows = [
        {
            "round": n,
            "accuracy": 0.125 + 0.74 * (1 - math.exp(-4.0 * n / rounds)),
            "macro_f1": 0.06 + 0.78 * (1 - math.exp(-3.6 * n / rounds)),
            "epsilon": privacy.epsilon(8 * n),
            "bytes_up": 260_000,
            "bytes_down": 1_300_000,
            "seconds": 1.375,
        }
        for n in range(1, rounds + 1)
    ]
    scores = [
        {
            "label": label,
            "precision": min(1.0, 0.45 + 0.5 * ((7 * i) % 13) / 13),
            "recall": min(1.0, 0.4 + 0.58 * ((5 * i) % 11) / 11),
            "f1": min(1.0, 0.42 + 0.55 * ((6 * i) % 17) / 17),
            "support": 20 + (i * 37) % 150,
        }
        for i, label in enumerate(labels)
    ]
    data = {
        "job_sha256": job.sha256,
        "name": job.job.name,
        "task": "seq-cls",
        "grid": "link",
        "private": mode == "site" and not seeded,
        "sites": [site_result(name, taken[name], privacy).model_dump() for name in sites],
        "start": {"accuracy": 0.125, "macro_f1": 0.06} if start else None,
        "rounds": rows,
        "final": {
            "accuracy": rows[-1]["accuracy"],
            "macro_f1": rows[-1]["macro_f1"],
            "classes": scores,
        },
        "privacy": privacy.model_dump(),
        "seconds": 71.5,
        "adapter_sha256": "cd" * 32,
    }
    return parse(Result, data, "test"), job


def make_outcome_of_words(kinds: list[str], *, kept_round: int | None = None) -> Outcome:
    """The same curve, of entities."""
    result, _ = make_outcome(classes=[*kinds, "?"])
    sites = {"riverside": 4200, "st-anne": 2600, "northgate": 1350}
    tags = ["O", *(f"{prefix}-{kind}" for kind in kinds for prefix in "BI")]
    job = job_of(tags, sites, len(result.rounds), "site", "token-cls")
    data = result.model_dump(mode="json")
    data |= {"task": "token-cls", "job_sha256": job.sha256, "kept_round": kept_round}
    for row in (data["start"], *data["rounds"], data["final"]):
        row |= {"entity_f1": row["accuracy"], "accuracy": None}
    data["final"]["classes"].pop()
    data["final"]["entities"] = {
        "precision": 0.8125,
        "recall": 0.78125,
        "f1": 0.796875,
        "strict_f1": 0.765625,
        "words": 23456,
        "words_cut": 789,
    }
    return parse(Result, data, "test"), job


@pytest.fixture
def outcome_of_words() -> MakeOutcome:
    return make_outcome_of_words


@pytest.fixture(scope="session")
def outcome() -> MakeOutcome:
    return make_outcome


def manifest(name: str = "wards", **training: float) -> Job:
    """A small private job of two sites."""
    return Job.model_validate(
        {
            "job": {"name": name},
            "model": {"base": "builtin:minilm", "sha256": "ab" * 32},
            "adapter": {"targets": ["query"]},
            "training": {"rounds": 3, "local_steps": 4, "learning_rate": 0.5, **training},
            "privacy": {
                "mode": "site",
                "epsilon": 6.0,
                "delta": 1e-4,
                "clip_norm": 0.7,
                "sampling_rate": 0.05,
            },
            "data": {
                "name": "notes",
                "labels": ["cardiology", "surgery"],
                "population": {"A": 400, "B": 600},
            },
            "evaluation": {"data": "builtin:wards"},
        }
    )


class Jobs:
    """Signed jobs by name, and the key that signs them."""

    key = OPERATOR
    signer = OPERATOR.public_key().public_bytes_raw().hex()

    def __call__(self, name: str = "wards", **training: float) -> SignedJob:
        return sign_job(manifest(name, **training), OPERATOR)


@pytest.fixture
def signed() -> Jobs:
    return Jobs()


class Rounds:
    """A trainer that closes a job's rounds without training, each when ``go`` allows."""

    def __init__(self, go: threading.Event) -> None:
        self.go = go

    def message_cap(self, job: Job) -> int:
        return len(job.sites) * 1000

    def announce_end(self, signed: SignedJob, grid: Grid, state: str) -> None: ...

    def run_job(
        self,
        signed: SignedJob,
        grid: Grid,
        checkpoints: Checkpoints,
        out: Path,
        *,
        grid_name: str,
        observe: Callable[[RoundRecord], None],
    ) -> object:
        sha256 = signed.job.sha256
        for round_ in range(signed.job.training.rounds + 1):
            while round_ and not self.go.is_set():
                grid.get_node_ids()
                time.sleep(0.01)
            checkpoints.dispatch(sha256, round_, signed.job.sites if round_ else ())
            record = RoundRecord(round_, 0.25 * round_, 0.2, 0, 0.1, "ab" * 32, "cd" * 32)
            checkpoints.save_round(sha256, record, bytes([round_]) * 8, [])
            observe(record)
        return out


@pytest.fixture(scope="module")
def identity(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("server")
    init_server(home, hosts=[], address="127.0.0.1:8443", listen="127.0.0.1:0")
    return home


@pytest.fixture
def home(identity: Path) -> Path:
    identity.chmod(0o700)
    (identity / "state.db").unlink(missing_ok=True)
    return identity


@pytest.fixture
def go() -> threading.Event:
    return threading.Event()


@pytest.fixture
def trainer(go: threading.Event) -> Trainer:
    return Rounds(go)


@pytest.fixture
def _logs_aside() -> Iterator[None]:
    """A server's log would stand among what commands print."""
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    log.configure(stream=io.StringIO())
    yield
    structlog.reset_defaults()
    root.handlers = handlers
    root.setLevel(level)


@pytest.fixture
def daemon(home: Path, trainer: Trainer, _logs_aside: None) -> Iterator[Daemon]:
    running = Daemon(home, trainer=trainer)
    running.start()
    yield running
    running.stop()


@pytest.fixture
def job(home: Path, signed: Jobs) -> SignedJob:
    return sign_job(signed(rounds=2).job, load_operator_key(home / "pki" / "operator.key"))
