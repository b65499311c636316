"""An auditor checks an exported ledger with no home at hand."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from client.outbox import Outbox, RoundKey, Terms
from common import pki
from common.audit.cli import main
from common.keys import load_key, new_key
from common.privacy.accounting import GaussianSteps, epsilon
from common.privacy.extract import write_extract
from common.privacy.ledger import Head
from common.privacy.lifetime import PldSchedule, cap_to_dict
from common.privacy.rdp_filter import RdpFilter
from simulations.loopback import make_loopback

GOLDEN = Path(__file__).parents[3] / "golden"
JOB, BARE = "ab" * 32, "cd" * 32
EVENT = GaussianSteps(0.05, 1.3, 4)
CAP = RdpFilter.for_cap(7.0, 1e-4)
Capsys = pytest.CaptureFixture[str]


class Ledger:
    """A site's account, and what an auditor is handed of it."""

    def __init__(self, folder: Path, cap: RdpFilter | PldSchedule = CAP) -> None:
        self.folder = folder
        self.key, self.request = pki.new_site_key_and_csr("A")
        (folder / "site.key").write_bytes(self.key)
        (folder / "site.key").chmod(0o600)
        self.box = Outbox(
            folder / "account.db", folder / "site.key", site="A", cap=cap_to_dict(cap)
        )
        plan = GaussianSteps(0.05, 1.3, 24)
        self.box.open_job(JOB, "wards", b"{}", 0, plan, Terms(unit="patient_id", delta=1e-5))
        self.box.open_job(BARE, "bare", b"{}")
        for round_ in (1, 2, 3):
            self.box.reserve(RoundKey(JOB, round_, f"{round_:064x}"), EVENT, b"start")
        self.early = self.box.head()
        self.box.reserve(RoundKey(BARE, 1, "1" * 64), GaussianSteps(0.05, 0.0, 7), b"start")

    def export(self) -> str:
        file = self.folder / "ledger.jsonl"
        file.write_bytes(write_extract(self.box.journal.rows(), self.box.head()))
        return str(file)

    def file(self, name: str, data: bytes) -> str:
        (self.folder / name).write_bytes(data)
        return str(self.folder / name)

    def head(self, head: Head) -> str:
        return self.file("head.json", json.dumps({"head": asdict(head)}).encode())


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path)


def public_pem(key: bytes) -> bytes:
    public = load_key(key).public_key()
    return public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def test_every_epsilon_is_computed_from_the_charges(ledger: Ledger, capsys: Capsys) -> None:
    assert main(["ledger", ledger.export(), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    wards, bare = found["jobs"]
    steps = GaussianSteps(0.05, 1.3, 12)
    assert wards["epsilon"] == epsilon([steps], 1e-5)
    assert (wards["delta"], wards["steps"], wards["planned_steps"]) == (1e-5, 12, 24)
    assert (wards["unit"], wards["rounds"], wards["state"]) == ("patient_id", 3, "running")
    assert (bare["epsilon"], bare["steps"], found["uncovered_rounds"]) == (None, 7, 1)
    assert found["lifetime"] == {
        "accountant": CAP.name,
        "max_epsilon": 7.0,
        "delta": 1e-4,
        "epsilon": CAP.epsilon([steps]),
        "epsilon_by_pld": epsilon([steps], 1e-4),
    }
    assert (found["passed"], found["site"], found["entries"]) == (True, "A", 7)
    assert len(found["not_checked"]) == 3


def test_a_recorded_ledger_is_said_in_words(capsys: Capsys) -> None:
    assert main(["ledger", str(GOLDEN / "ledger_capped.jsonl")]) == 0
    out = " ".join(capsys.readouterr().out.split())
    for words in (
        "whole: 13 entries, all signed",
        "handed over by the key before, accepted by Ada",
        "epsilon 8 at delta 1e-05, by rdp-filter order 3.1",
        "within the cap",
        "Not checked:",
        "whose keys these are",
    ):
        assert words in out


def test_the_last_key_is_compared_with_the_sites(
    ledger: Ledger, tmp_path: Path, capsys: Capsys
) -> None:
    chain = pki.issue_site(ledger.request, make_loopback(tmp_path).intermediate)
    for data in (public_pem(ledger.key), chain):
        command = ["ledger", ledger.export(), "--key", ledger.file("key.pem", data), "--json"]
        assert main(command) == 0
        assert len(json.loads(capsys.readouterr().out)["not_checked"]) == 2
    other = ledger.file("other.pem", public_pem(new_key()))
    assert main(["ledger", ledger.export(), "--key", other]) == 1
    said = "FAIL: ledger must be signed last by the key given, got another\n"
    assert capsys.readouterr().out == said
    first = ledger.key  # a key that signed before, and signs no more
    (ledger.folder / "site.key").write_bytes(new_key())
    ledger.box = Outbox(ledger.folder / "account.db", ledger.folder / "site.key")
    ledger.box.journal.rekey("Ada")
    earlier = ledger.file("first.pem", public_pem(first))
    assert main(["ledger", ledger.export(), "--key", earlier]) == 1


def test_a_head_that_was_kept_is_continued(ledger: Ledger, capsys: Capsys) -> None:
    assert main(["ledger", ledger.export(), "--head", ledger.head(ledger.early)]) == 0
    assert "missing at the end" not in capsys.readouterr().out
    rows, late = ledger.box.journal.rows(), ledger.box.head()
    cut = ledger.file("cut.jsonl", write_extract(rows[: ledger.early.size], ledger.early))
    assert main(["ledger", cut, "--json"]) == 0
    assert main(["ledger", cut, "--head", ledger.head(late)]) == 1
    assert "must hold the 7 entries of the head given, got 6" in capsys.readouterr().out
    (ledger.folder / "other").mkdir()
    other = Ledger(ledger.folder / "other").early
    assert main(["ledger", ledger.export(), "--head", ledger.head(other)]) == 1
    assert "head given must be signed by a key of the ledger" in capsys.readouterr().out


def test_another_history_by_the_same_key_is_found_by_a_head(ledger: Ledger, capsys: Capsys) -> None:
    before = ledger.box.head()
    for name in ("account.db", "account.anchor"):
        (ledger.folder / name).unlink()
    ledger.box = Outbox(
        ledger.folder / "account.db", ledger.folder / "site.key", site="A", cap=cap_to_dict(CAP)
    )
    for number in range(8):
        ledger.box.open_job(f"{number:064x}", "job", b"{}")
    assert main(["ledger", ledger.export()]) == 0
    assert main(["ledger", ledger.export(), "--head", ledger.head(before)]) == 1
    assert "must begin with the 7 entries of the head given" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("cap", "says"),
    [
        (RdpFilter.for_cap(0.4, 1e-4), "FAIL: more than the cap allows"),
        (PldSchedule((BARE,), 7.0, 1e-4), "FAIL: more than the cap allows"),
    ],
)
def test_charges_that_the_cap_does_not_allow_fail(
    tmp_path: Path, capsys: Capsys, cap: RdpFilter | PldSchedule, says: str
) -> None:
    assert main(["ledger", Ledger(tmp_path, cap).export()]) == 1
    assert says in capsys.readouterr().out


def test_a_ledger_that_is_not_whole_fails_and_a_file_that_is_none_is_misuse(
    ledger: Ledger, capsys: Capsys
) -> None:
    file = Path(ledger.export())
    data = file.read_bytes()
    file.write_bytes(data.replace(b"wards", b"wardz"))
    assert main(["ledger", str(file)]) == 1
    fault = "ledger entry 1 must match its hash, got other bytes"
    assert capsys.readouterr().out == f"FAIL: {fault}\n"
    assert main(["ledger", str(file), "--json"]) == 1
    assert json.loads(capsys.readouterr().out) == {"passed": False, "fault": fault}
    headless = ledger.file("headless.jsonl", b"\n".join(data.split(b"\n")[:-2]))
    for command in (
        ["ledger", headless],
        ["ledger", "."],
        ["ledger", ""],
        ["ledger", ledger.export(), "--key", str(file)],
        ["ledger", ledger.export(), "--head", str(file)],
        ["ledger", ledger.export(), "--head", ledger.file("x", b'{"head": {"size": 1.0}}')],
        ["ledger", ledger.export(), "--head", ledger.file("x", b"[]")],
    ):
        assert main(command) == 2
        said = capsys.readouterr()
        assert said.out == ""
        assert said.err.startswith("error: ")
        assert said.err.count("\n") == 1


def test_names_from_a_ledger_move_no_cursor(ledger: Ledger, capsys: Capsys) -> None:
    ledger.box.open_job("ef" * 32, "\x1b[2Jowned", b"{}")
    assert main(["ledger", ledger.export()]) == 0
    assert "\x1b" not in capsys.readouterr().out
