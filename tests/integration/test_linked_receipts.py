"""The two phases over the real link: certificates, a daemon, sites, one job."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from client.config import SiteHome, load_home
from client.enrolment import init_site, install
from client.site import Site
from common.audit.heads_cli import read_heads
from common.certificates import fingerprint
from common.job import Job, sign_job
from common.keys import load_operator_key
from common.privacy.charge import check_charge, check_ending
from common.receipt import verify_signed
from server.control import Request, ask
from server.enrolment import enroll, init_server
from tests.conftest import records, write_records
from tests.integration import live
from tests.integration.live import HOST, free_port, running_daemon, running_sites


def enrolled(
    server: Path, folder: Path, site: str, port: int, signer: str, **policy: object
) -> SiteHome:
    bundle = folder.with_suffix(".bundle")
    init_site(folder, site)
    enroll(server, folder / f"{site}.csr", bundle)
    install(folder, site, bundle)
    write_records(folder / "notes.csv", records(30, offset=100 * ord(site)))
    config = {
        "site": site,
        "server": f"{HOST}:{port}",
        "policy": {"allowed_signers": [signer], "allow_no_privacy": True, **policy},
        "data": {"notes": {"path": "notes.csv"}},
        "runtime": {"device": "cpu", "threads": 1},
    }
    (folder / "site.toml").write_text(tomli_w.dumps(config))
    return load_home(folder, site)


def one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two models in one process are made and trained in turn, as two processes would not care."""
    lock = threading.RLock()
    for name in ("consider", "answer"):
        act = getattr(Site, name)

        def locked(*given: Any, act: Callable[..., Any] = act) -> Any:  # noqa: ANN401
            with lock:
                return act(*given)

        monkeypatch.setattr(Site, name, locked)


@pytest.mark.slow
def test_sites_know_each_others_heads_by_receipts_that_lead_to_their_root(
    tmp_path_factory: pytest.TempPathFactory,
    make_job: Callable[..., Job],
    no_privacy: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one_at_a_time(monkeypatch)
    place, port = tmp_path_factory.mktemp("k"), free_port()
    server = place / "server"
    address = f"{HOST}:{port}"
    init_server(server, hosts=[HOST], address=address, listen=address)
    signer = (server / "pki/operator.pub").read_text().strip()
    homes = [enrolled(server, place / site, site, port, signer) for site in "AB"]
    job = make_job(training={"rounds": 2, "local_steps": 1, "quorum": 2}, privacy=no_privacy)
    signed = sign_job(job, load_operator_key(server / "pki/operator.key"))
    with running_daemon(server) as daemon, running_sites() as start:
        for home in homes:
            start(home)
        ask(server, Request(command="submit", signed=signed.to_bytes().decode()))
        monkeypatch.setattr(live, "PATIENCE_S", 240.0)  # models are loaded
        live.eventually(lambda: daemon.checkpoints.job("wards").state in ("finished", "failed"))
        assert daemon.checkpoints.job("wards").state == "finished"
        made = daemon.checkpoints.round_receipts(job.sha256)
        live.eventually(lambda: len(daemon.checkpoints.endings(job.sha256)) == 2)
        endings = daemon.checkpoints.endings(job.sha256)
    assert [one.receipt.round for one in made] == [1, 2]
    roots = (homes[0].folder / "pki/root.pem").read_bytes()
    for one in made:
        verify_signed(one, roots)
        for charge in one.receipt.charges.values():
            check_charge(charge, {charge.head.public_key}.__contains__)
    for site, ending in endings.items():
        assert ending.since is not None
        assert ending.since.is_same(made[-1].receipt.heads[site])
        entry = check_ending(ending, {ending.head.public_key}.__contains__)
        assert (entry.job_sha256, entry.steps, entry.counts) == (job.sha256, 2, 0)
    for home, of in zip(homes, "BA", strict=True):
        rows, alarms = read_heads(home.folder, of)
        assert [row.state for row in rows] == ["first", "consistent"]
        assert {row.confirmed_by for row in rows} == {fingerprint(made[0].chain.encode())}
        assert not alarms
