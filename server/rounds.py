"""A closed round in the server's tables: its record, its replies and the adapter, whole or not.

Every function works within a transaction that its caller opened (server/checkpoint.py).
"""

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, RowMapping

from common.errors import StorageFailed
from common.receipt import Reply, ServerKey
from server import tables
from server.receipts import make_receipt
from server.records import Receipt, RoundRecord, names


def keep_round(
    connection: Connection,
    job_sha256: str,
    record: RoundRecord,
    vector: bytes,
    receipts: Iterable[Receipt],
    key: ServerKey | None,
    *,
    is_best: bool,
    memory: bytes = b"",
) -> None:
    """Close a round, with its signed receipt where there is a key; again is no change.

    ``memory`` is a server optimiser's, where the job has one.

    Raises:
        StorageFailed: the round is closed with another content.
    """
    content = {
        **dataclasses.asdict(record),
        "vector_sha256": hashlib.sha256(vector).hexdigest(),
    }
    rows = [dataclasses.asdict(receipt) for receipt in receipts]
    if _is_saved(connection, job_sha256, content, rows):
        return
    connection.execute(tables.rounds.insert().values(job_sha256=job_sha256, **content))
    if rows:
        connection.execute(
            tables.receipts.insert(), [{"job_sha256": job_sha256, **row} for row in rows]
        )
    kept = [(tables.adapters, vector)]
    kept += [(tables.best_adapters, vector)] if is_best else []
    kept += [(tables.memories, memory)] if memory else []
    for table, numbers in kept:
        connection.execute(table.delete().where(table.c.job_sha256 == job_sha256))
        row = {"job_sha256": job_sha256, "round": record.round, "vector": numbers}
        connection.execute(table.insert().values(**row))
    if key is not None and record.round:
        ends = record.input_sha256, record.output_sha256
        make_receipt(connection, job_sha256, record.round, ends, _replies(rows), key)


def _is_saved(
    connection: Connection,
    job_sha256: str,
    content: dict[str, Any],
    receipts: list[dict[str, Any]],
) -> bool:
    here = (tables.rounds.c.job_sha256 == job_sha256) & (tables.rounds.c.round == content["round"])
    row = connection.execute(sa.select(tables.rounds).where(here)).mappings().first()
    if row is None:
        return False
    there = (tables.receipts.c.job_sha256 == job_sha256) & (
        tables.receipts.c.round == content["round"]
    )
    kept = connection.execute(sa.select(tables.receipts).where(there)).mappings().all()
    if _same(row, content) and _by_site(kept) == _by_site(receipts):
        return True
    raise StorageFailed(
        f"round {content['round']} must be saved once, got another content for it "
        f"({content['output_sha256'][:12]} after {row['output_sha256'][:12]})"
    )


def _replies(rows: Iterable[Mapping[str, Any]]) -> list[Reply]:
    return [Reply(**{name: row[name] for name in Reply.model_fields}) for row in rows]


def _same(row: RowMapping, content: dict[str, Any]) -> bool:
    return all(row[name] == value for name, value in content.items() if name != "seconds")


def _by_site(rows: Iterable[Any]) -> dict[str, tuple[Any, ...]]:
    return {row["site"]: tuple(row[name] for name in names(Receipt)) for row in rows}
