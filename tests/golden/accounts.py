"""How the recorded accounts were made; run once a format, never again.

``account_v1.db`` is an account of the version before the ledger, by that version's own statements.
``ledger_v1.jsonl`` is a ledger of format 1, exported; its cap is of no form that was ever enforced.
``ledger_capped.jsonl`` and ``account_capped.db`` are one ledger of the same charges with a true cap
and a key that was handed over. What all must add up to, for ever, is in ``accounts.json``: its
epsilons are by Opacus' PRV accountant, which shares no code with ours.
"""

import json
import shutil
import sqlite3
import tempfile
from pathlib import Path

from opacus.accountants.prv import PRVAccountant

from client.outbox import Outbox, RoundKey, Terms
from common.files import write_file
from common.keys import load_key, new_key
from common.privacy.accounting import GaussianSteps
from common.privacy.extract import write_extract
from common.privacy.lifetime import cap_to_dict
from common.privacy.rdp_filter import RdpFilter

HERE = Path(__file__).parent
FIRST_VERSION = """
CREATE TABLE job (
    sha256 TEXT PRIMARY KEY, name TEXT NOT NULL, manifest BLOB NOT NULL,
    state TEXT NOT NULL, final_sha256 TEXT NOT NULL DEFAULT '',
    cap_bytes INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE TABLE release (
    job_sha256 TEXT NOT NULL REFERENCES job (sha256), round INTEGER NOT NULL,
    input_sha256 TEXT NOT NULL, input BLOB,
    steps INTEGER NOT NULL, sampling_rate REAL NOT NULL, noise_multiplier REAL NOT NULL,
    payload BLOB, payload_sha256 TEXT NOT NULL DEFAULT '',
    acknowledged INTEGER NOT NULL DEFAULT 0, accepted INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (job_sha256, round)
) STRICT;
INSERT INTO job VALUES
    ('{a}', 'wards', x'7b7d', 'finished', '{f}', 900),
    ('{b}', 'icu', x'7b20207d', 'running', '', 800),
    ('{c}', 'open', x'7b207d', 'stopped', '', 0);
INSERT INTO release VALUES
    ('{a}', 1, '{i}', NULL, 40, 0.02, 1.1, NULL, '{p}', 1, 1),
    ('{b}', 1, '{i}', NULL, 25, 0.05, 1.3, x'010203',
     '039058c6f2c0cb492c533b0a4d14ef77cc0f78abccced5287d84a1a2011cfb81', 1, 0),
    ('{a}', 2, '{j}', NULL, 40, 0.02, 1.1, NULL, '', 0, 0),
    ('{c}', 1, '{i}', NULL, 9, 0.05, 0.0, NULL, '{p}', 0, 0),
    ('{b}', 3, '{j}', x'0405', 25, 0.05, 1.3, NULL, '', 0, 0);
"""
NAMES = {letter: letter * 64 for letter in "abcf"} | {"i": "1" * 64, "j": "2" * 64, "p": "e" * 64}
V1 = [GaussianSteps(0.02, 1.1, 80), GaussianSteps(0.05, 1.3, 50)]
LEDGER = [GaussianSteps(0.03, 0.9, 60), GaussianSteps(0.01, 1.7, 200)]
DELTA = 1e-5


def _first_version(path: Path) -> None:
    path.unlink(missing_ok=True)
    db = sqlite3.connect(path)
    db.executescript(FIRST_VERSION.format(**NAMES))
    db.close()


def _capped(ledger: Path, account: Path) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_file(folder / "site.key", new_key())
        cap = cap_to_dict(RdpFilter.for_cap(8.0, DELTA))
        Outbox(folder / "account.db", site="A", cap=cap, unit="patient_id")
        old = load_key((folder / "account.key").read_bytes())
        box = Outbox(folder / "account.db", folder / "site.key")
        box.journal.rekey("Ada", old)
        _fill(box)
        ledger.write_bytes(write_extract(box.journal.rows(), box.head()))
        shutil.copy(folder / "account.db", account)


def _ledger(path: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        box = Outbox(Path(folder) / "account.db", site="A", cap={"order": 8, "budget": 2.5})
        _fill(box)
        path.write_bytes(write_extract(box.journal.rows(), box.head()))


def _fill(box: Outbox) -> None:
    terms = Terms(unit="patient_id", unit_cap=4, delta=DELTA)
    for letter, event in zip("ab", LEDGER, strict=True):
        job, half = letter * 64, event.steps // 2
        box.open_job(job, f"job-{letter}", b"{}", 900, event, terms)
        box.decide(job, "approve", "Ada")
        part = GaussianSteps(event.sampling_rate, event.noise_multiplier, half)
        for round_ in (1, 2):
            key = RoundKey(job, round_, f"{round_:064x}")
            box.reserve(key, part, b"start")
            if round_ == 1:
                box.store(key, b"bytes")
    box.close_job("a" * 64, "finished", "")


def _prv(events: list[GaussianSteps]) -> float:
    accountant = PRVAccountant()
    accountant.history = [(e.noise_multiplier, e.sampling_rate, e.steps) for e in events]
    return float(accountant.get_epsilon(DELTA, eps_error=0.001))


if __name__ == "__main__":
    _first_version(HERE / "account_v1.db")
    _ledger(HERE / "ledger_v1.jsonl")
    _capped(HERE / "ledger_capped.jsonl", HERE / "account_capped.db")
    expected = {"delta": DELTA, "account_v1": _prv(V1), "ledger_v1": _prv(LEDGER)}
    (HERE / "accounts.json").write_text(json.dumps(expected, indent=2) + "\n")
