"""``fl-server export``: what leaves was checked as an auditor would, and contradictions stay.

The oracle is the reference verifier, and faults planted into the server's own database.
"""

import datetime as dt
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy as sa

from common import pki
from common.audit.certificate import read_certificate
from common.audit.report import AuditReport, verdict_of
from common.audit.verify import verify
from common.cli import run
from common.job import Job, sign_job
from common.keys import load_operator_key, public_key_sha256
from common.pki import load_key
from common.receipt import SignedReceipt, to_bytes
from common.result import write_result
from common.stored_zip import unpack
from server import tables
from server.checkpoint import Checkpoints
from server.cli import app
from server.config import load_server_config
from server.enrolment import admit, init_server
from server.publication import draft, publish, sign_draft
from tests.planted_evidence import VECTOR
from tests.reference_verifier import fault_of
from tests.story import Authorities, Ledger, Story, digest, make_job, weights


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Story:
    """A server's home whose database holds a whole job; ``story.home`` is where."""
    home = tmp_path_factory.mktemp("export") / "server"
    told = begin(home, make_job())
    told.round()
    told.round(silent=["B"])
    keep(home, told, told.signed_receipts())
    return told


def begin(home: Path, job: Job) -> Story:
    """A server with its own authorities, both sites admitted, no round yet."""
    now = dt.datetime.now(dt.UTC).replace(microsecond=0)
    init_server(home, hosts=["127.0.0.1"], address="127.0.0.1:8443", now=now)

    def held(name: str) -> pki.Credential:
        folder = home / "pki"
        return pki.Credential(
            (folder / f"{name}.pem").read_bytes(), (folder / f"{name}.key").read_bytes()
        )

    operator = load_operator_key(home / "pki" / "operator.key")
    by = Authorities(held("root"), held("intermediate"), held("server"), operator)
    told = Story(by, sign_job(job, operator), begun=now)
    for site in told.job.sites:
        key, csr = pki.new_site_key_and_csr(site)
        told.certificates[site] = admit(home, csr, now=now)[0].certificate.encode()
        told.ledgers[site] = Ledger(site, key)
    return told


def home_of(story: Story, base: Path) -> Path:
    return next(base.glob("export*/server"))


def keep(home: Path, story: Story, receipts: tuple[SignedReceipt, ...]) -> None:
    """The job as a server leaves it behind."""
    checkpoints = Checkpoints(load_server_config(home).database)
    checkpoints.add_job(story.signed)
    checkpoints.set_state(story.job.sha256, "finished")
    checkpoints.close()
    outcome = home / "jobs" / story.job.sha256
    outcome.mkdir(parents=True)
    write_result(story.result(), outcome / "result.json")
    replace(home, story, receipts)


def replace(home: Path, story: Story, receipts: tuple[SignedReceipt, ...]) -> None:
    engine = sa.create_engine(load_server_config(home).database)
    with engine.begin() as connection:
        connection.execute(tables.round_receipts.delete())
        for signed in receipts:
            connection.execute(
                tables.round_receipts.insert().values(
                    job_sha256=story.job.sha256,
                    round=signed.receipt.round,
                    sha256=signed.sha256,
                    content=to_bytes(signed),
                )
            )
    engine.dispose()


@pytest.fixture
def home(story: Story, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return home_of(story, tmp_path_factory.getbasetemp())


Export = Callable[..., tuple[int, str]]


@pytest.fixture
def export(home: Path, capsys: pytest.CaptureFixture[str]) -> Export:
    def call(file: Path, *options: str) -> tuple[int, str]:
        words = ["--home", str(home), "export", "small", "--bundle", str(file), *options]
        status = run(app, words, "fl-server")
        said = capsys.readouterr()
        return status, said.out + said.err

    return call


def test_what_is_exported_holds_for_a_verifier_that_is_not_ours(
    export: Export, home: Path, story: Story, tmp_path: Path
) -> None:
    status, said = export(tmp_path / "e.zip")
    assert status == 0, said
    root = (home / "pki" / "root.pem").read_bytes()
    assert fault_of((tmp_path / "e.zip").read_bytes(), root) == ""
    before = (tmp_path / "e.zip").read_bytes()
    status, said = export(tmp_path / "e.zip")
    assert (status, (tmp_path / "e.zip").read_bytes()) == (2, before)
    assert "must not exist yet" in said


def test_a_database_that_was_changed_is_not_exported(
    export: Export, home: Path, story: Story, tmp_path: Path
) -> None:
    one, two = story.signed_receipts()
    told = two.receipt.model_copy(update={"asked": ("A",)})
    replace(home, story, (one, two.model_copy(update={"receipt": told})))
    status, said = export(tmp_path / "e.zip")
    replace(home, story, story.signed_receipts())
    assert status == 1
    assert "receipts: round 2: receipt must be signed by its server's key" in said
    assert not (tmp_path / "e.zip").exists()


def report(story: Story, **fields: object) -> bytes:
    claimed = story.result().privacy.epsilon(story.job.steps)
    bound = fields.pop("lower_bound", 1.25)
    made = AuditReport.model_validate(
        {
            "name": "mechanism",
            "job_sha256": story.job.sha256,
            "code_sha256": digest("code"),
            "site": "A",
            "epsilon": claimed,
            "delta": 1e-5,
            "lower_bound": bound,
            "significance": 0.001,
            "runs": 1,
            "verdict": verdict_of(float(str(bound)), claimed or 0),
            "records": "public",
        }
        | fields
    )
    return made.to_bytes()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"lower_bound": 6.5}, "the claim is refuted"),
        (
            {"lower_bound": 6.5, "epsilon": 9.0, "verdict": "consistent with the claim"},
            "epsilon must be 5.99",
        ),
        ({"delta": 0.5}, "delta must be 1e-05, got 0.5"),
        ({"significance": 0.051}, "significance must be at most 0.05, got 0.051"),
        ({"significance": 0.99}, "significance must be at most 0.05, got 0.99"),
        (
            {"code_sha256": "00" * 32},
            f"charged under ({digest('code')[:16]}), got 0000000000000000",
        ),
        ({"records": "private"}, "must be on public records"),
        ({"job_sha256": "cd" * 32}, "must be of this job"),
        ({"site": "Z"}, "must be of a site"),
    ],
)
def test_an_audit_that_contradicts_the_ledger_keeps_the_bundle_here(
    export: Export, story: Story, tmp_path: Path, fields: dict[str, object], words: str
) -> None:
    (tmp_path / "a.json").write_bytes(report(story, **fields))
    status, said = export(tmp_path / "e.zip", "--audit", str(tmp_path / "a.json"))
    assert status == 1
    assert words in said
    assert not (tmp_path / "e.zip").exists()


@pytest.mark.slow
def test_a_consistent_audit_goes_with_it(export: Export, story: Story, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(report(story, significance=0.05, runs=3))
    status, said = export(tmp_path / "e.zip", "--audit", str(tmp_path / "a.json"))
    assert status == 0, said
    from common.stored_zip import unpack

    certificate = unpack((tmp_path / "e.zip").read_bytes(), "bundle")["documents/certificate.json"]
    (stated,) = json.loads(certificate)["audits"]
    assert stated["lower_bound"] == 1.25
    assert (stated["name"], stated["site"], stated["runs"]) == ("mechanism", "A", 3)
    assert stated["code_sha256"] == digest("code")


@pytest.fixture(scope="module")
def ended_early(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Story]:
    """Two of nine rounds by patience; B was away in one."""
    home = tmp_path_factory.mktemp("early") / "server"
    planned = make_job(rounds=9).model_dump(mode="json", exclude_none=True)
    planned["training"]["patience"] = 1
    told = begin(home, Job.model_validate(planned))
    told.round()
    told.round(away=["B"])
    output = told.receipts[0].output_sha256
    told.changes |= {"kept_round": 1, "vector_sha256": output}
    keep(home, told, told.signed_receipts())
    return home, told


@pytest.mark.slow
@pytest.mark.parametrize("site", ["A", "B"])
def test_an_audit_of_all_steps_is_sound_for_a_site_that_was_charged_for_fewer(
    ended_early: tuple[Path, Story], site: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home, story = ended_early
    charged = {one.name: one.epsilon or 0.0 for one in story.result().sites}
    assert charged["B"] < charged["A"] < 5.4 < 5.99
    (tmp_path / "a.json").write_bytes(report(story, site=site, lower_bound=5.4))
    words = ["--home", str(home), "export", "small", "--bundle", str(tmp_path / "e.zip")]
    assert run(app, [*words, "--audit", str(tmp_path / "a.json")], "fl-server") == 0
    assert (tmp_path / "e.zip").exists()
    (tmp_path / "b.json").write_bytes(report(story, site=site, lower_bound=6.01))
    words[-1] = str(tmp_path / "f.zip")
    assert run(app, [*words, "--audit", str(tmp_path / "b.json")], "fl-server") == 1
    assert "the claim is refuted" in capsys.readouterr().err


def test_a_job_that_did_not_finish_has_no_evidence(
    export: Export, home: Path, story: Story, tmp_path: Path
) -> None:
    checkpoints = Checkpoints(load_server_config(home).database)
    checkpoints.set_state(story.job.sha256, "stopped", "by the operator")
    status, said = export(tmp_path / "e.zip")
    checkpoints.set_state(story.job.sha256, "finished")
    checkpoints.close()
    assert status == 2
    assert "must be finished" in said


@pytest.mark.slow
def test_the_roster_that_the_root_signed_goes_along_and_has_to_name_every_key(
    export: Export, home: Path, story: Story, tmp_path: Path
) -> None:
    root, key = ((home / "pki" / name).read_bytes() for name in ("root.pem", "root.key"))

    def claim(file: Path) -> str:
        (found,) = (c for c in verify(file.read_bytes(), root).claims if c.name == "roster")
        return found.status

    publish(home, sign_draft(draft(home), key))
    status, said = export(tmp_path / "e.zip")
    assert status == 0, said
    data = (tmp_path / "e.zip").read_bytes()
    assert claim(tmp_path / "e.zip") == "pass"
    assert fault_of(data, root) == ""
    assert read_certificate(
        unpack(data, "bundle")["documents/certificate.json"]
    ).signatures[1].where == "roster.json"  # fmt: skip
    other = story.by.enrol("B")[0]
    made_up = draft(home).model_copy(
        update={
            "sites": draft(home).sites | {"B": (public_key_sha256(load_key(other).public_key()),)}
        }
    )
    publish(home, sign_draft(made_up, key))
    status, said = export(tmp_path / "f.zip")
    assert status == 1
    assert "must name B's key" in said
    assert not (tmp_path / "f.zip").exists()
    status, said = export(tmp_path / "f.zip", "--without-roster")
    (home / "roster.signed").unlink()
    assert status == 0, said
    assert "not checkable (adapter, ending, roster)" in said
    assert claim(tmp_path / "f.zip") == "not checkable"


@pytest.mark.slow
def test_an_adapter_file_that_no_round_made_is_not_exported(
    tmp_path_factory: pytest.TempPathFactory,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    home = tmp_path_factory.mktemp("weighed") / "server"
    told = begin(home, make_job(rounds=1))
    told.round()
    told.make(VECTOR, weights())
    keep(home, told, told.signed_receipts())
    file = home / "jobs" / told.job.sha256 / "adapter" / "adapter_model.safetensors"
    file.parent.mkdir()
    words = ["--home", str(home), "export", "small", "--bundle"]
    for made, status in ((weights(), 0), (weights(9.0), 1)):
        file.write_bytes(made)
        bundle = tmp_path / f"{status}.zip"
        assert run(app, [*words, str(bundle)], "fl-server") == status
        assert bundle.exists() == (status == 0)
    assert "adapter's file must have the sha256" in capsys.readouterr().err


def test_one_report_is_handed_in_once(export: Export, story: Story, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(report(story))
    twice = ["--audit", str(tmp_path / "a.json")] * 2
    status, said = export(tmp_path / "e.zip", *twice)
    assert status == 1
    assert "no more than the 1 that share their significance" in said
