"""What a running federation turns down, who is told why, and that it goes on afterwards."""

import sqlite3
import subprocess
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import tomli_w

from common.errors import VeiltuneError
from common.job import Job, SignedJob, parse_signed_job, sign_job
from common.keys import load_operator_key
from common.messages import WRONG_BASE
from server.control import Request, ask

if TYPE_CHECKING:
    from tests.faults.conftest import Hospitals

pytestmark = pytest.mark.slow

MakeJob = Callable[..., Job]
ONCE = {"rounds": 1}


def no_charge(hospitals: "Hospitals", site: str, job: Job) -> bool:
    return hospitals.account(site, job.sha256) == []


@pytest.mark.parametrize(
    ("plant", "words"),
    [
        ("half the noise", "P: noise: variance over the accounted one must be in ["),
        ("no clip", "P: sensitivity: one record must move the sum by at most 1.0"),
        ("shuffled batches", "P: sampler: spread of "),
    ],
)
def test_a_site_whose_mechanism_is_broken_refuses_to_train(
    hospitals: "Hospitals", ward_job: MakeJob, plant: str, words: str
) -> None:
    job = ward_job(f"planted-{plant.replace(' ', '-')}", "P")
    file = hospitals.site_home("P") / "plant"
    file.write_text(plant)
    try:
        assert words in hospitals.fails(job)
    finally:
        file.unlink()
    assert no_charge(hospitals, "P", job)


def test_the_same_program_without_a_plant_trains(hospitals: "Hospitals", ward_job: MakeJob) -> None:
    hospitals.finish(hospitals.queue(ward_job("no-plant", "P", training=ONCE)))


def test_epsilon_above_a_site_s_maximum(hospitals: "Hospitals", ward_job: MakeJob) -> None:
    job = ward_job("greedy", "P", privacy={"epsilon": 9.0})
    words = "P: privacy.epsilon must be at most this site's 8, got 9"
    assert words in hospitals.fails(job)
    assert words in hospitals.command("fl-server", "show", job.sha256[:12]).replace("\n", " ")
    assert no_charge(hospitals, "P", job)


def test_no_privacy_where_the_owner_does_not_allow_it(
    hospitals: "Hospitals", ward_job: MakeJob
) -> None:
    job = ward_job("naked", "P", private=False)
    assert "P: privacy.mode must be 'site' here (allow_no_privacy = false)" in hospitals.fails(job)
    assert no_charge(hospitals, "P", job)


def test_a_site_that_holds_another_base_model_trains_nothing(
    hospitals: "Hospitals", ward_job: MakeJob
) -> None:
    job = ward_job("base", "P", model={"base": str(hospitals.base)})
    reason = hospitals.fails(job)
    assert f"P: {WRONG_BASE}" in reason
    assert "sha256" in hospitals.log("P"), "which one it holds is for its own eyes"
    assert no_charge(hospitals, "P", job)


def test_a_wrong_base_hash_in_the_job_ends_it_at_the_server(
    hospitals: "Hospitals", ward_job: MakeJob
) -> None:
    assert "sha256" in hospitals.fails(ward_job("hash", "P", model={"sha256": "ab" * 32}))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("no-label", "no-label.csv"),
        ("empty", "empty.csv must hold at least one record, got none"),
        ("foreign", "foreign.csv"),
    ],
)
def test_what_is_wrong_with_records_stays_at_the_site(
    hospitals: "Hospitals", ward_job: MakeJob, data: str, words: str
) -> None:
    begun = hospitals.log_size("P"), hospitals.log_size("server")
    job = ward_job(f"data-{data}", "P", data=data)
    assert hospitals.fails(job).endswith("(P: not participating)")
    at_site, at_server = hospitals.log("P", begun[0]), hospitals.log("server", begun[1])
    assert words in at_site
    assert words not in at_server
    for log in (at_site, at_server):
        assert "secretive" not in log
    assert no_charge(hospitals, "P", job)


def edited(signed: SignedJob) -> bytes:
    privacy = signed.job.privacy.model_copy(update={"epsilon": 7.9})
    job = signed.job.model_copy(update={"privacy": privacy})
    return signed.model_copy(update={"job": job}).to_bytes()


def test_a_job_edited_after_signing_is_not_queued(
    hospitals: "Hospitals", ward_job: MakeJob
) -> None:
    key = load_operator_key(hospitals.server_home / "pki/operator.key")
    text = edited(sign_job(ward_job("edited", "P"), key)).decode()
    with pytest.raises(VeiltuneError, match="edited after signing"):
        ask(hospitals.server_home, Request(command="submit", signed=text))


def test_a_job_edited_at_the_server_is_refused_by_the_site(
    hospitals: "Hospitals", ward_job: MakeJob
) -> None:
    """Whoever owns the server's disk, but not the operator's key, changes a queued job."""
    waiting = hospitals.queue(ward_job("blocks-the-queue", "AB", training={"rounds": 10_000}))
    job = ward_job("edited-on-disk", "P")
    hospitals.queue(job)
    with closing(sqlite3.connect(hospitals.server_home / "state.db", timeout=30)) as db, db:
        query = "SELECT signed FROM jobs WHERE sha256 = ?"
        (signed,) = db.execute(query, (job.sha256,)).fetchone()
        forged = edited(parse_signed_job(signed))
        sha256 = parse_signed_job(forged).job.sha256
        db.execute(
            "UPDATE jobs SET signed = ?, sha256 = ? WHERE sha256 = ?", (forged, sha256, job.sha256)
        )
    ask(hospitals.server_home, Request(command="stop", job=waiting))
    hospitals.wait_for("its end", lambda: hospitals.state(sha256)[0] == "failed")
    assert "P: job signature must be over this manifest" in hospitals.state(sha256)[1]
    assert no_charge(hospitals, "P", job)
    assert hospitals.account("P", sha256) == []


def test_an_unknown_key_is_named_and_nothing_is_queued(
    hospitals: "Hospitals", ward_job: MakeJob, tmp_path: Path
) -> None:
    manifest = ward_job("misspelt", "P").model_dump(mode="json", exclude_none=True)
    manifest["training"]["epochs"] = 3
    file = tmp_path / "job.toml"
    file.write_text(tomli_w.dumps(manifest))
    done = run(hospitals, "submit", str(file))
    assert done.returncode == 2
    assert "training.epochs" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert "misspelt" not in hospitals.command("fl-server", "jobs")


def run(
    hospitals: "Hospitals", *arguments: str, site: str = ""
) -> subprocess.CompletedProcess[str]:
    script = "fl-client" if site else "fl-server"
    return subprocess.run(
        [*hospitals._prefix(script, site), *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )


def test_a_site_s_name_is_no_path(hospitals: "Hospitals", tmp_path: Path) -> None:
    prefix = hospitals._prefix("fl-client", "A")[:1]
    done = subprocess.run(
        [*prefix, "--site", "../x", "init"],
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
        env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"},
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: site must be ")
    assert "../x" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_port_in_use_is_said_in_one_line(hospitals: "Hospitals", tmp_path: Path) -> None:
    home = tmp_path / "s"
    subprocess.run(
        [
            *hospitals._prefix("fl-server")[:1],
            *("--home", str(home), "init", "--host", "127.0.0.1"),
            *("--address", f"127.0.0.1:{hospitals.port}"),
            *("--listen", f"127.0.0.1:{hospitals.port}"),
        ],
        capture_output=True,
        check=True,
        timeout=240,
    )
    done = subprocess.run(
        [*hospitals._prefix("fl-server")[:1], "--home", str(home), "start"],
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert f"listen address must be free, got 127.0.0.1:{hospitals.port}" in line
    assert "Traceback" not in done.stderr


def test_a_home_has_one_server(hospitals: "Hospitals") -> None:
    done = run(hospitals, "start")
    assert done.returncode == 2
    assert "home must have one running server" in done.stderr
