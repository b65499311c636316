"""An account of the first version becomes entries, so that no charge is ever lost.

That version kept two plain tables, ``job`` and ``release``. Their rows are chained once, each
marked as imported: what they say was never signed. One transaction does it, so a crash leaves the
old file or the new one.
"""

import hashlib
import sqlite3
from collections.abc import Iterator

from client.journal import Writer
from common.errors import InvalidInput
from common.privacy.account import RUNNING
from common.privacy.entries import Closed, Committed, Entry, Released, Reserved, Submitted, Terms

OLD_TABLES = {"job", "release"}
UNKNOWN = "before the ledger"


def import_account(writer: Writer) -> None:
    """Chain the rows of the old tables, move the bytes, and drop the tables."""
    for model, fields in [*_submissions(writer.db), *_charges(writer.db), *_ends(writer.db)]:
        writer.append(model, is_imported=True, **fields)
    db = writer.db
    db.execute("INSERT INTO manifest SELECT sha256, manifest FROM job")
    db.execute(
        "INSERT INTO content (job_sha256, round, start, payload) "
        "SELECT job_sha256, round, input, payload FROM release "
        "WHERE job_sha256 IN (SELECT sha256 FROM job WHERE state = 'running')"
    )
    db.execute("DROP TABLE release")
    db.execute("DROP TABLE job")


def require_no_release(db: sqlite3.Connection) -> None:
    """Check that nothing was charged before a schedule begins, as its proof has it.

    Raises:
        InvalidInput: something was.
    """
    (count,) = db.execute("SELECT COUNT(*) FROM release").fetchone()
    if count:
        raise InvalidInput(
            f"policy.lifetime must be 'rdp-filter' for an account with earlier releases, got "
            f"'pld-schedule' after {count} of them: a schedule is fixed before the first"
        )


Found = Iterator[tuple[type[Entry], dict[str, object]]]
_VERSIONS = {"code_sha256": "", "accountant": UNKNOWN, "terms": Terms()}


def _submissions(db: sqlite3.Connection) -> Found:
    rows = db.execute("SELECT sha256, name, manifest, cap_bytes FROM job ORDER BY rowid")
    for sha256, name, manifest, cap_bytes in rows.fetchall():
        yield (
            Submitted,
            {
                "job_sha256": sha256,
                "name": name,
                "manifest_sha256": _sha256(manifest),
                "message_cap_bytes": cap_bytes,
                "plan": None,
                **_VERSIONS,
            },
        )


def _charges(db: sqlite3.Connection) -> Found:
    rows = db.execute(
        "SELECT job_sha256, round, input_sha256, input, steps, sampling_rate, noise_multiplier, "
        "payload_sha256, acknowledged, accepted FROM release ORDER BY rowid"
    )
    for job, round_, source, start, steps, rate, noise, payload, known, accepted in rows.fetchall():
        place = {"job_sha256": job, "round": round_}
        charge = {"steps": steps, "sampling_rate": rate, "noise_multiplier": noise}
        yield (
            Reserved,
            {
                **place,
                "input_sha256": source,
                "start_sha256": "" if start is None else _sha256(start),
                "charge": charge,
                **_VERSIONS,
            },
        )
        if payload:
            yield Released, {**place, "payload_sha256": payload}
        if known:
            yield Committed, {**place, "payload_sha256": payload, "is_accepted": bool(accepted)}


def _ends(db: sqlite3.Connection) -> Found:
    rows = db.execute("SELECT sha256, state, final_sha256 FROM job WHERE state <> ?", (RUNNING,))
    for sha256, state, final_sha256 in rows.fetchall():
        yield Closed, {"job_sha256": sha256, "state": state, "final_sha256": final_sha256}


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
