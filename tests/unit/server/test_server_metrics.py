"""A server's figures against the state that they are of."""

import datetime as dt
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from common import pki
from common.job import SignedJob
from server.checkpoint import Receipt, RoundRecord
from server.cli import main
from server.daemon import Daemon
from server.enrolment import enroll
from server.worker import Trainer

UNITS = ("_seconds", "_bytes", "_total", "_info", "_count", "_sum")


@pytest.fixture
def measured(home: Path, trainer: Trainer, _logs_aside: None) -> Iterator[Daemon]:
    daemon = Daemon(home, trainer=trainer, metrics="127.0.0.1:0")
    daemon.start()
    yield daemon
    daemon.stop()


def families(daemon: Daemon) -> list[Metric]:
    url = f"http://127.0.0.1:{daemon.metrics_port}/metrics"
    with urllib.request.urlopen(url, timeout=10) as answer:
        return list(text_string_to_metric_families(answer.read().decode()))


def samples(daemon: Daemon) -> dict[tuple[str, ...], float]:
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in families(daemon)
        for sample in family.samples
    }


def test_totals_are_those_of_the_durable_state(
    measured: Daemon, job: SignedJob, go: threading.Event
) -> None:
    go.clear()
    sha256, kept = job.job.sha256, measured.checkpoints
    kept.add_job(job)
    kept.set_state(sha256, "running")
    for round_ in (0, 1, 2):
        receipts = [
            Receipt("A", round_, "aa" * 32, 4, 4, bytes_up=300, accepted=True),
            Receipt("B", round_, "bb" * 32, 4, 4, bytes_up=70, accepted=round_ != 2),
        ]
        record = RoundRecord(
            round_, 0.5, 0.4, 370 * bool(round_), 1.75, "ab" * 32, f"{round_:064x}"
        )
        kept.save_round(sha256, record, b"", receipts if round_ else [])
    found = samples(measured)
    assert found["veiltune_server_jobs", "running"] == 1
    assert found["veiltune_server_jobs", "finished"] == 0
    assert found["veiltune_server_job_round", sha256[:12], "wards"] == 2
    assert found["veiltune_server_round_duration_seconds_count",] == 2
    assert found["veiltune_server_round_duration_seconds_sum",] == 3.5
    assert found["veiltune_server_received_bytes_total",] == 740
    assert found["veiltune_server_updates_total", "accepted"] == 3
    assert found["veiltune_server_updates_total", "rejected"] == 1
    assert found["veiltune_server_state_readable",] == 1


def test_sites_and_certificates_are_told_with_their_expiry(
    measured: Daemon, home: Path, tmp_path: Path
) -> None:
    csr = tmp_path / "A.csr"
    csr.write_bytes(pki.new_site_key_and_csr("A")[1])
    made = enroll(home, csr)
    found = samples(measured)
    assert found["veiltune_server_site_connected", "A"] == 0
    name = "veiltune_server_site_certificate_expiry_timestamp_seconds"
    assert found[name, "A"] == made.not_after.timestamp()
    expiry = found["veiltune_server_certificate_expiry_timestamp_seconds", "server"]
    days = (dt.datetime.fromtimestamp(expiry, dt.UTC) - dt.datetime.now(dt.UTC)).days
    assert days in (29, 30)
    (home / "roster.json").unlink()


def test_names_follow_prometheus_conventions(measured: Daemon) -> None:
    for family in families(measured):
        assert family.name.startswith("veiltune_")
        assert family.documentation.endswith(".")
        for sample in family.samples:
            if family.type in ("counter", "summary", "info"):
                assert sample.name.endswith(UNITS), sample.name


def test_a_state_that_cannot_be_read_is_told_and_not_guessed(measured: Daemon, home: Path) -> None:
    measured.checkpoints.close()
    (home / "state.db").write_bytes(b"no database" * 100)
    found = samples(measured)
    assert found["veiltune_server_state_readable",] == 0
    assert not [key for key in found if key[0].startswith("veiltune_server_job")]


@pytest.mark.usefixtures("_logs_aside")
@pytest.mark.parametrize("command", [["start"], ["systemd"]])
def test_an_address_that_others_reach_is_refused(
    command: list[str], home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--home", str(home), *command, "--metrics", "0.0.0.0:9464"]) == 2
    assert "error: metrics address must be on loopback" in capsys.readouterr().err
