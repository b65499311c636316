"""The adapter that a site keeps; peft and transformers by themselves are the oracle."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from client import cli, export
from client.config import SiteHome
from client.outbox import Outbox
from common.adapter import Vector, load_adapter, vector_sha256
from common.errors import InvalidInput, JobRefused, LinkDown, Refusal, StorageFailed, UpdateRejected
from common.job import Job, sign_job
from server.link import LinkServer

OPERATOR = Ed25519PrivateKey.from_private_bytes(b"\x0b" * 32)
Capture = pytest.CaptureFixture[str]
Serving = Callable[[Callable[[str, str], bytes | None]], LinkServer]
Running = Callable[[SiteHome], Callable[[], None]]


class Homes(Protocol):
    """The fixture of that name."""

    def make(self, site: str = "A", **options: object) -> Path: ...
    def load(self, site: str = "A", **options: object) -> SiteHome: ...


@dataclass
class Finished:
    """A job that ended, at the server and in a site's account."""

    home: SiteHome
    job: Job
    vector: Vector
    sent: list[bytes]

    @property
    def outbox(self) -> Outbox:
        return Outbox.of(self.home)

    def accept(self, job: Job) -> None:
        signed = sign_job(job, OPERATOR)
        self.outbox.open_job(job.sha256, job.job.name, signed.to_bytes(), 1_000_000)

    def close(self, final_sha256: str | None = None) -> None:
        final = vector_sha256(self.vector) if final_sha256 is None else final_sha256
        self.outbox.close_job(self.job.sha256, "finished", final)

    def cli(self, *argv: str) -> int:
        return cli.main(["--site", "A", "--home", str(self.home.folder), *argv])


@pytest.fixture
def finished(
    homes: Homes, serving: Serving, job: Callable[..., Job], logs_aside: object
) -> Finished:
    done = job()
    size = load_adapter(done, Path(done.model.base), "cpu").table.size
    vector = np.random.default_rng(5).normal(0, 0.3, size).astype(np.float32)
    sent = [vector.tobytes()]
    link = serving(lambda site, sha256: sent[0] if sha256 == done.sha256 else None)
    found = Finished(homes.load(port=link.port), done, vector, sent)
    found.accept(done)
    return found


def oracle(folder: Path, job: Job, text: str) -> dict[str, float]:
    """What peft and transformers make of the kept folder."""
    base = AutoModelForSequenceClassification.from_pretrained(
        job.model.base, num_labels=len(job.data.labels)
    )
    model = PeftModel.from_pretrained(base, str(folder)).eval()
    tokens = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt")
    with torch.no_grad():
        logits = model(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask).logits
    return dict(zip(job.data.labels, logits[0].double().softmax(0).tolist(), strict=True))


def test_an_adapter_is_fetched_kept_and_tried_beside_a_live_session(
    finished: Finished, running: Running, capsys: Capture
) -> None:
    finished.close()
    running(finished.home)
    assert finished.cli("fetch", "wards") == 0
    folder = finished.home.folder / "adapters" / "wards"
    out = capsys.readouterr().out
    assert f"adapter kept in {folder}" in out
    assert "vector: the same as in the message that closed the job" in out
    assert f"  vector sha256 {vector_sha256(finished.vector)}\n" in out
    weights = (folder / "adapter_model.safetensors").read_bytes()
    assert f"  file sha256   {hashlib.sha256(weights).hexdigest()}  (adapter_model" in out
    assert json.loads((folder / "veiltune.json").read_text()) == {
        "job_sha256": finished.job.sha256,
        "labels": ["cardiology", "surgery", "urology"],
        "adapter_sha256": vector_sha256(finished.vector),
        "hash_from": "closing message",
    }
    expected = oracle(folder, finished.job, "w3 w140 caf\u00e9")
    text = "w3 w140\x07 cafe\u0301 "  # normalised to the same
    assert finished.cli("predict", finished.job.sha256[:8], text, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["label"] for row in found] == sorted(expected, key=lambda key: -expected[key])
    assert max(abs(row["probability"] - expected[row["label"]]) for row in found) < 1e-5
    assert max(expected.values()) - min(expected.values()) > 0.01


def test_a_site_that_was_away_is_told_whose_word_the_hash_is(
    finished: Finished, capsys: Capture
) -> None:
    assert finished.cli("fetch", "wards") == 0
    assert "the server's word alone" in capsys.readouterr().out
    note = json.loads((finished.home.folder / "adapters/wards/veiltune.json").read_text())
    assert note["hash_from"] == "server at fetch"
    (row,) = finished.outbox.jobs()
    assert (row.state, row.final_sha256) == ("finished", "")


def test_another_adapter_than_the_one_that_closed_the_job_is_not_kept(finished: Finished) -> None:
    finished.close("12" * 32)
    with pytest.raises(UpdateRejected, match="must be the one that closed the job, 1212"):
        export.fetch_adapter(finished.home, "wards")
    assert not (finished.home.folder / "adapters").exists()


def test_an_adapter_of_another_length_or_not_finite_is_refused(finished: Finished) -> None:
    finished.close()
    finished.sent[0] = finished.vector[:-1].tobytes()
    with pytest.raises(UpdateRejected, match=f"must have {4 * finished.vector.size} bytes"):
        export.fetch_adapter(finished.home, "wards")
    broken = finished.vector.copy()
    broken[[3, 8]] = np.nan, np.inf
    finished.sent[0] = broken.tobytes()
    with pytest.raises(UpdateRejected, match=f"got 2 of {broken.size} not finite"):
        export.fetch_adapter(finished.home, "wards")
    finished.sent[0] = finished.vector.tobytes() * 2
    with pytest.raises(UpdateRejected, match="bytes, got"):
        export.fetch_adapter(finished.home, "wards")


def test_a_job_that_the_server_has_not_finished_is_not_fetched(
    finished: Finished, job: Callable[..., Job], capsys: Capture
) -> None:
    finished.accept(job(job={"name": "icu"}))
    with pytest.raises(Refusal, match="with an adapter"):
        export.fetch_adapter(finished.home, "icu")
    assert finished.cli("fetch", "nobody") == 2
    assert "one of those here (icu, wards), got 'nobody'" in capsys.readouterr().err
    assert {row.state for row in finished.outbox.jobs()} == {"running"}


def test_a_fetch_without_a_server_says_why(finished: Finished, homes: Homes) -> None:
    home = homes.load(port=1)
    with pytest.raises(LinkDown, match="refused the connection"):
        export.fetch_adapter(home, "wards")


def test_a_changed_adapter_is_not_tried(finished: Finished) -> None:
    finished.close()
    folder, _ = export.fetch_adapter(finished.home, "wards")
    weights = folder / "adapter_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-2] ^= 1
    weights.write_bytes(data)
    with pytest.raises(InvalidInput, match="kept adapter must have sha256"):
        export.predict(finished.home, "wards", "w1")
    weights.write_bytes(data[:100])
    with pytest.raises(InvalidInput, match="must be an adapter of this job"):
        export.predict(finished.home, "wards", "w1")
    export.fetch_adapter(finished.home, "wards")
    assert len(export.predict(finished.home, "wards", "w1")) == 3


def test_two_jobs_of_one_name_are_kept_apart(finished: Finished, job: Callable[..., Job]) -> None:
    finished.close()
    first, _ = export.fetch_adapter(finished.home, "wards")
    other = job(training={"rounds": 5})
    assert export.folder_of(finished.home, "wards", finished.job.sha256) == first
    second = export.folder_of(finished.home, "wards", other.sha256)
    assert second == first.with_name(f"wards-{other.sha256[:12]}")
    finished.accept(other)
    with pytest.raises(InvalidInput, match="job must name one job, got 'wards' for"):
        export.predict(finished.home, "wards", "w1")
    with pytest.raises(InvalidInput, match="must be kept here, got none"):
        export.predict(finished.home, other.sha256[:9], "w1")


def test_another_base_under_the_job_s_name_is_refused(
    finished: Finished, homes: Homes, tmp_path: Path
) -> None:
    other = tmp_path / "base"
    other.mkdir()
    for path in Path(finished.job.model.base).iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    (other / "config.json").write_text((other / "config.json").read_text() + " ")
    home = homes.load(models={finished.job.model.base: str(other)})
    with pytest.raises(JobRefused, match=r"model\.sha256 must be that of the base here"):
        export.fetch_adapter(home, "wards")


def test_a_disk_that_refuses_leaves_nothing_half_written(finished: Finished) -> None:
    finished.close()
    (finished.home.folder / "adapters").write_text("a file is in the way")
    with pytest.raises(StorageFailed, match="adapters"):
        export.fetch_adapter(finished.home, "wards")
    (finished.home.folder / "adapters").unlink()
    folder, _ = export.fetch_adapter(finished.home, "wards")
    assert [path.name for path in folder.parent.iterdir()] == ["wards"]


def test_a_text_may_come_from_standard_input(
    finished: Finished, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    import io

    finished.close()
    export.fetch_adapter(finished.home, "wards")
    monkeypatch.setattr("sys.stdin", io.StringIO("w3 w140"))
    assert finished.cli("predict", "wards", "-") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["label", "probability"]
    expected = export.predict(finished.home, "wards", "w3 w140")
    assert [line.split() for line in lines[1:]] == [
        [guess.label, f"{guess.probability:.3f}"] for guess in expected
    ]
