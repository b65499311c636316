"""Shared by all tests: a tiny base model, jobs on it, and a federation in one process.

Our packages come first: gRPC and Flower read their settings on import. Whatever needs torch is
imported where it is used, since most tests do without.
"""

import csv
import gc
import os
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import settings

import common  # noqa: F401
from common.config import parse
from common.job import Job, SignedJob, sign_job

if TYPE_CHECKING:
    from flwr.app import Message

    from client.site import Site
    from common.privacy.stream import KeySource
    from common.result import Result
    from server.checkpoint import Checkpoints, RoundRecord

# Before torch is imported, and for every process that a test starts: they run side by side.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A slow machine is no fault of the code.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """What is imported stays: to look through it for garbage again and again takes seconds."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


OPERATOR = Ed25519PrivateKey.from_private_bytes(b"\x0b" * 32)
SIGNER = OPERATOR.public_key().public_bytes_raw().hex()
LABELS = ("cardiology", "surgery", "urology")
POPULATIONS = {"A": 36, "B": 52}

Tap = Callable[[str, "Message"], "Message"]


@dataclass(frozen=True)
class TinyBase:
    """A random BERT of 2 layers, 32 wide, and its WordPiece tokenizer of 357 entries."""

    folder: Path
    sha256: str


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> TinyBase:
    from common.model import folder_hash

    folder = tmp_path_factory.mktemp("base")
    write_tiny_base(folder)
    return TinyBase(folder, folder_hash(folder))


def write_tiny_base(folder: Path, *, seed: int = 3) -> None:
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    from common.model import quiet_transformers

    quiet_transformers()
    letters = "abcdefghijklmnopqrstuvwxyz"
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = [*special, *letters, *(f"##{c}" for c in letters), *(f"w{i}" for i in range(300))]
    tokenizer = Tokenizer(
        models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]")
    )
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    ).save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        # Larger than BERT's own start, so that attention is not uniform and labels are learnable.
        config.initializer_range = 0.2
        BertModel(config).save_pretrained(folder)


def records(count: int, *, offset: int = 0) -> list[tuple[str, str]]:
    """(text, label) rows: each label has words of its own, and lengths differ."""
    rows = []
    for i in range(offset, offset + count):
        label = i % len(LABELS)
        words = [f"w{(37 * i + 11 * j) % 90 + 100 * label}" for j in range(3 + (5 * i) % 23)]
        rows.append((" ".join(words), LABELS[label]))
    return rows


def write_records(path: Path, rows: list[tuple[str, str]], label: str = "label") -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", label])
        writer.writerows(rows)
    return path


@pytest.fixture(scope="session")
def hold_out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_records(tmp_path_factory.mktemp("public") / "dev.csv", records(24, offset=900))


MakeJob = Callable[..., Job]


@pytest.fixture(scope="session")
def job_data(tiny_base: TinyBase, hold_out: Path) -> Callable[..., dict[str, Any]]:
    """The tables of a small private job; keyword tables are merged in, a None removes its key."""

    def make(**sections: Mapping[str, Any]) -> dict[str, Any]:
        data: dict[str, dict[str, Any]] = {
            "job": {"name": "wards"},
            "model": {
                "base": str(tiny_base.folder),
                "sha256": tiny_base.sha256,
                "max_length": 48,
            },
            "adapter": {"rank": 2, "alpha": 6, "targets": ["query", "value"], "seed": 17},
            "training": {"rounds": 3, "local_steps": 2, "learning_rate": 0.3, "quorum": 2},
            "privacy": {
                "mode": "site",
                "epsilon": 6.0,
                "delta": 1e-5,
                "clip_norm": 0.7,
                "sampling_rate": 0.25,
            },
            "data": {"name": "notes", "labels": list(LABELS), "population": dict(POPULATIONS)},
            "evaluation": {"data": str(hold_out), "records": 24},
        }
        for name, table in sections.items():
            merged = {**data.get(name, {}), **table}
            data[name] = {key: value for key, value in merged.items() if value is not None}
        return data

    return make


@pytest.fixture(scope="session")
def job(make_job: MakeJob) -> MakeJob:
    """``make_job``, where no folder's own conftest takes the name."""
    return make_job


ALLOWS_NO_PRIVACY = {"allow_no_privacy": True}
NO_PRIVACY: dict[str, Any] = {"mode": "none", "epsilon": None, "delta": None, "clip_norm": None}


@pytest.fixture(scope="session")
def make_job(job_data: Callable[..., dict[str, Any]]) -> MakeJob:
    def make(**sections: Mapping[str, Any]) -> Job:
        return parse(Job, job_data(**sections), "test")

    return make


@pytest.fixture(scope="session")
def plain_job(make_job: MakeJob) -> MakeJob:
    """Jobs without privacy, where privacy is not the claim: no self-check, no accountant."""

    def make(**sections: Mapping[str, Any]) -> Job:
        return make_job(**{**sections, "privacy": {**NO_PRIVACY, **sections.get("privacy", {})}})

    return make


@pytest.fixture(scope="session")
def operator() -> Ed25519PrivateKey:
    """Whose jobs the sites of these fixtures accept."""
    return OPERATOR


def sign(job: Job) -> SignedJob:
    return sign_job(job, OPERATOR)


@pytest.fixture(scope="session")
def rows() -> Callable[..., list[tuple[str, str]]]:
    """``rows(count, offset=0)``: texts and labels."""
    return records


@pytest.fixture(scope="session")
def no_privacy() -> dict[str, Any]:
    """What turns a job's privacy off."""
    return dict(NO_PRIVACY)


MakeSite = Callable[..., "Site"]


@pytest.fixture
def site(tmp_path: Path) -> MakeSite:
    """Sites with a home each; the same name opens the same home."""

    def make(
        name: str = "A",
        *,
        rows: list[tuple[str, str]] | None = None,
        keys: "KeySource | None" = None,
        **overrides: Any,  # noqa: ANN401
    ) -> "Site":
        from client.config import SiteConfig, SiteHome
        from client.site import Site

        folder = tmp_path / "homes" / name
        folder.mkdir(parents=True, exist_ok=True)
        data = folder / "notes.csv"
        if rows is not None or not data.exists():
            given = records(POPULATIONS.get(name, 30), offset=100 * ord(name[0]))
            write_records(data, given if rows is None else rows)
        config = {
            "site": name,
            "policy": {"allowed_signers": [SIGNER], "max_epsilon": 50.0, "max_delta": 1e-4}
            | overrides.pop("policy", {}),
            "data": {"notes": {"path": "notes.csv"}},
            "runtime": {"device": "cpu"} | overrides.pop("runtime", {}),
        } | overrides
        return Site(SiteHome(folder, parse(SiteConfig, config, "site.toml")), seeded=keys)

    return make


@pytest.fixture
def self_checks() -> None:
    """For a test whose sites check their mechanism, in a file where others do not."""


@pytest.fixture
def unrehearsed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sites of this test do not check their mechanism before a job, which takes most of a second:

    for files that are about something else, but for tests that ask for ``self_checks``.
    """
    if "self_checks" not in request.fixturenames:
        monkeypatch.setattr("client.site.rehearse", lambda *_, **__: ("skipped",))


@dataclass
class Federation:
    """Sites, the signed job and a server, in one process.

    ``tap`` sees each reply on its way to the server and may change it; ``server_key`` gives what
    the server signs with.
    """

    signed: SignedJob
    sites: dict[str, "Site"]
    folder: Path
    tap: Tap = lambda _, reply: reply
    replies: list[tuple[str, "Message"]] = field(default_factory=list)
    requests: list[tuple[str, "Message"]] = field(default_factory=list)
    rounds: list["RoundRecord"] = field(default_factory=list)
    server_key: Callable[[], Any] = lambda: None

    @property
    def checkpoints(self) -> "Checkpoints":
        from server.checkpoint import Checkpoints

        url = f"sqlite:///{self.folder / 'state.db'}"
        return Checkpoints(url, server_key=self.server_key)

    def run(
        self, *, seeded: bool = False, observe: "Callable[[RoundRecord], None] | None" = None
    ) -> "Result":
        from server.app import run_job
        from simulations.grids import InProcessGrid

        checkpoints = self.checkpoints
        checkpoints.add_job(self.signed)
        return run_job(
            self.signed,
            InProcessGrid(self._apps()),
            checkpoints,
            self.folder / "out",
            grid_name="inprocess",
            observe=observe or self.rounds.append,
            seeded=seeded,
        )

    def _apps(self) -> dict[int, Any]:
        from common.flower import new_context
        from common.link.identity import node_id

        return {
            node_id(name): (self._app(name, one), new_context(node_id(name)))
            for name, one in self.sites.items()
        }

    def _app(self, name: str, one: "Site") -> Callable[..., "Message"]:
        from client.app import make_client_app

        app = make_client_app(lambda _: one)

        def call(message: "Message", context: Any) -> "Message":  # noqa: ANN401
            self.requests.append((name, message))
            reply = self.tap(name, app(message, context))
            self.replies.append((name, reply))
            return reply

        return call


MakeFederation = Callable[..., Federation]


@pytest.fixture
def federation(site: MakeSite, tmp_path: Path) -> MakeFederation:
    """A federation for a job: one site for each that the job names."""

    def make(
        job: Job,
        *,
        keys: "Callable[[str], KeySource] | None" = None,
        folder: str = "server",
        **overrides: Any,  # noqa: ANN401
    ) -> Federation:
        place = tmp_path / folder
        place.mkdir(exist_ok=True)
        sites = {
            name: site(name, keys=keys(name) if keys else None, **dict(overrides))
            for name in job.sites
        }
        return Federation(sign(job), sites, place)

    return make


@pytest.fixture
def plain_federation(federation: MakeFederation) -> MakeFederation:
    """A federation whose sites take jobs without privacy."""

    def make(job: Job, **overrides: Any) -> Federation:  # noqa: ANN401
        return federation(job, **overrides, policy=ALLOWS_NO_PRIVACY)

    return make


@dataclass
class Logs:
    """What was logged, as one text."""

    events: list[Any]

    @property
    def text(self) -> str:
        return "\n".join(repr(event) for event in self.events)


@pytest.fixture(autouse=True)
def _logs_as_by_default() -> None:
    """A command that an earlier test ran may have set a level that hides events."""
    structlog.reset_defaults()


@pytest.fixture
def logs() -> Iterator[Logs]:
    with structlog.testing.capture_logs() as events:
        yield Logs(events)
