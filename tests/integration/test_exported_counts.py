"""A job with counts, from its submission over the real link to a bundle that an auditor checks.

The oracle is the reference verifier, and the sites' own ledgers.
"""

import json
from collections.abc import Callable
from typing import Any

import pytest

from client.outbox import Outbox
from common.audit.certificate import read_certificate
from common.audit.verify import verify
from common.cli import run
from common.job import Job, sign_job
from common.keys import load_operator_key
from common.privacy import accounting
from common.result import read_result
from common.stored_zip import unpack
from server.cli import app
from server.control import Request, ask
from server.enrolment import init_server
from server.publication import draft, publish, sign_draft
from tests.integration import live
from tests.integration.live import HOST, free_port, running_daemon, running_sites
from tests.integration.test_linked_receipts import enrolled, one_at_a_time
from tests.reference_verifier import fault_of

COUNTS = {"release": ["accuracy", "classes"], "hold_out": 0.25, "share": 0.1}


@pytest.mark.slow
def test_a_job_with_counts_is_exported_and_every_claim_holds(
    tmp_path_factory: pytest.TempPathFactory,
    make_job: Callable[..., Job],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    one_at_a_time(monkeypatch)
    place, port = tmp_path_factory.mktemp("c"), free_port()
    server, address = place / "server", f"{HOST}:{port}"
    init_server(server, hosts=[HOST], address=address, listen=address)
    signer = (server / "pki/operator.pub").read_text().strip()
    allowed = {"allowed_releases": ["update", "metrics"]}
    homes = [enrolled(server, place / s, s, port, signer, **allowed) for s in "AB"]
    publish(server, sign_draft(draft(server), (server / "pki/root.key").read_bytes()))
    training = {"rounds": 2, "local_steps": 1, "quorum": 2}
    job = make_job(training=training, metrics=COUNTS)
    signed = sign_job(job, load_operator_key(server / "pki/operator.key"))
    with running_daemon(server) as daemon, running_sites() as start:
        for home in homes:
            start(home)
        ask(server, Request(command="submit", signed=signed.to_bytes().decode()))
        monkeypatch.setattr(live, "PATIENCE_S", 280.0)  # models are loaded, self-checks run
        live.eventually(lambda: daemon.checkpoints.job("wards").state in ("finished", "failed"))
        assert daemon.checkpoints.job("wards").state == "finished"
        live.eventually(lambda: len(daemon.checkpoints.endings(job.sha256)) == 2)
    file = place / "evidence.zip"
    words = ["--home", str(server), "export", "wards", "--bundle", str(file)]
    assert run(app, words, "fl-server") == 0, capsys.readouterr().err
    data, root = file.read_bytes(), (homes[0].folder / "pki/root.pem").read_bytes()
    kept = server / "jobs" / job.sha256 / "adapter" / "adapter_model.safetensors"
    assert fault_of(data, root, kept.read_bytes()) == ""
    claims = verify(data, root, kept.read_bytes()).claims
    assert [claim for claim in claims if claim.status != "pass"] == []
    found = {(c.name, c.subject): c.found for c in claims}
    files = unpack(data, "bundle")
    certificate = read_certificate(files["documents/certificate.json"])
    assert certificate.counts is not None
    (counting,) = [
        receipt
        for name in sorted(files)
        if name.startswith("rounds/")
        and (receipt := json.loads(files[name])["receipt"])["round"] == job.metrics_round
    ]
    assert sorted(counting["charges"]) == ["A", "B"]
    result = read_result(server / "jobs" / job.sha256 / "result.json")
    assert result.metrics is not None
    assert {one.site for one in result.metrics.sites} == {"A", "B"}
    for home, stated in zip(homes, certificate.sites, strict=True):
        # What each site's own ledger was charged, by an account that no server has seen.
        charges = Outbox.of(home, is_reader=True).charges()
        events: list[Any] = [charge.event for charge in charges]
        assert [charge.purpose for charge in charges] == ["update", "update", "metrics"]
        assert stated.epsilon == pytest.approx(accounting.epsilon(events, 1e-5), abs=1e-9)
        assert stated.releases_of_counts == 1
        assert "2 steps and its counts" in found["epsilon", home.site]
        assert found["ending", home.site] == "2 steps charged in all, and its counts"
