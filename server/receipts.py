"""Charges, endings, confirmed heads and the signed receipts of rounds, in the server's tables.

Every function works within a transaction that its caller opened (server/checkpoint.py).

Not covered: what a charge proves (common/privacy/charge.py); whose key signed it
(server/witness.py).
"""

from datetime import UTC, datetime

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from common.errors import UpdateRejected
from common.job import Job, parse_signed_job
from common.privacy.charge import HeadOf, SignedCharge, SignedEnding
from common.receipt import (
    Reply,
    RoundReceipt,
    ServerKey,
    SignedReceipt,
    read_charge,
    read_ending,
    read_receipt,
    to_bytes,
)
from server import tables

_MOST_JOBS = 8  # whose last receipts are looked into for heads that peers may know


def keep_charge(
    connection: Connection, job_sha256: str, round_: int, site: str, charge: SignedCharge
) -> HeadOf:
    """Keep the one charge of a site and round with its head; the head to confirm.

    Raises:
        UpdateRejected: the round has another charge, or the head does not go on from the one that
            was confirmed or shown before.
    """
    kept = charge_of(connection, job_sha256, round_, site)
    if kept is not None:
        if kept.row.hash != charge.row.hash:
            raise UpdateRejected(f"charge of round {round_} must be the first one, got another")
        return kept.head
    known = _head(connection, tables.confirmed_heads, site)
    if known is not None and not known.is_same(charge.since):
        raise UpdateRejected(
            f"charge must go on from the head of {known.size} entries that was confirmed, got "
            f"{charge.since.size if charge.since else 'none'}"
        )
    _require_no_older(charge.head, _head(connection, tables.heads, site))
    content = {"round": round_, "site": site, "content": to_bytes(charge)}
    connection.execute(tables.charges.insert().values(job_sha256=job_sha256, **content))
    for table in (tables.confirmed_heads, tables.heads):
        connection.execute(table.delete().where(table.c.site == site))
        row = {"site": site, "seen_at": now(), **charge.head.model_dump()}
        connection.execute(table.insert().values(**row))
    return charge.head


def _require_no_older(head: HeadOf, witnessed: HeadOf | None) -> None:
    if witnessed is None or head.size > witnessed.size or head.is_same(witnessed):
        return
    how = "forked" if head.size == witnessed.size else "shorter"
    raise UpdateRejected(
        f"charge's head must go on from the {witnessed.size} entries that were witnessed, got a "
        f"{how} ledger of {head.size}"
    )


def charge_of(
    connection: Connection, job_sha256: str, round_: int, site: str
) -> SignedCharge | None:
    """The charge that was kept for a site and round."""
    table = tables.charges
    query = sa.select(table.c.content).where(
        (table.c.job_sha256 == job_sha256) & (table.c.round == round_) & (table.c.site == site)
    )
    row = connection.execute(query).first()
    return None if row is None else read_charge(bytes(row[0]))


def keep_ending(connection: Connection, job_sha256: str, site: str, ending: SignedEnding) -> None:
    """Keep a site's last word on a job, unless there is one."""
    table = tables.endings
    mine = (table.c.job_sha256 == job_sha256) & (table.c.site == site)
    if connection.execute(sa.select(table.c.site).where(mine)).first() is None:
        row = {"job_sha256": job_sha256, "site": site, "content": to_bytes(ending)}
        connection.execute(tables.endings.insert().values(**row))


def endings_of(connection: Connection, job_sha256: str) -> dict[str, SignedEnding]:
    """The last word of each site that gave one."""
    table = tables.endings
    query = sa.select(table.c.site, table.c.content).where(table.c.job_sha256 == job_sha256)
    return {site: read_ending(bytes(content)) for site, content in connection.execute(query)}


def make_receipt(
    connection: Connection,
    job_sha256: str,
    round_: int,
    hashes: tuple[str, str],
    replies: list[Reply],
    key: ServerKey,
) -> None:
    """Sign and keep the receipt of a round that is being closed, or of a job's counts.

    ``hashes``: of the global adapter that went in and of the one that came out; of counts both are
    of the adapter that was kept.
    """
    of_round = tables.charges.c.job_sha256 == job_sha256, tables.charges.c.round == round_
    found = connection.execute(sa.select(tables.charges).where(*of_round)).mappings()
    job = _job(connection, job_sha256)
    heads = {site: _head(connection, tables.confirmed_heads, site) for site in job.sites}
    before = _last_of(connection, job_sha256)
    receipt = RoundReceipt(
        job_sha256=job_sha256,
        round=round_,
        # A clock that was put back does not make a round earlier than the one before it.
        closed_at=max(now(), before.receipt.closed_at) if before else now(),
        before=before.sha256 if before else "",
        input_sha256=hashes[0],
        output_sha256=hashes[1],
        asked=_asked(connection, job, round_),
        replies=tuple(sorted(replies, key=lambda reply: reply.site)),
        charges={row["site"]: read_charge(bytes(row["content"])) for row in found},
        heads={site: head for site, head in heads.items() if head is not None},
    )
    signed = key.sign_receipt(receipt)
    connection.execute(
        tables.round_receipts.insert().values(
            job_sha256=job_sha256, round=round_, sha256=signed.sha256, content=to_bytes(signed)
        )
    )


def _last_of(connection: Connection, job_sha256: str) -> SignedReceipt | None:
    table = tables.round_receipts
    query = sa.select(table.c.content).where(table.c.job_sha256 == job_sha256)
    content = connection.execute(query.order_by(table.c.round.desc())).scalar()
    return None if content is None else read_receipt(bytes(content))


def receipts_of(
    connection: Connection, job_sha256: str, first: int = 0, before: int | None = None
) -> list[bytes]:
    """The signed receipts of a job's rounds from ``first`` on, first to last."""
    table = tables.round_receipts
    query = sa.select(table.c.content).where(
        (table.c.job_sha256 == job_sha256) & (table.c.round >= first)
    )
    if before is not None:
        query = query.where(table.c.round < before)
    return [bytes(c) for c in connection.execute(query.order_by(table.c.round)).scalars()]


def to_show(
    connection: Connection, job_sha256: str, site: str, before: int
) -> tuple[list[bytes], list[HeadOf]]:
    """What an order of round ``before`` brings a site: receipts, and heads to prove from.

    A site that was charged in a round has all receipts from before that round. One that was not yet
    charged in this job is asked for proofs from what receipts of earlier jobs said of it too, since
    its peers may know it by those.
    """
    table = tables.charges
    charged = connection.execute(
        sa.select(sa.func.max(table.c.round)).where(
            (table.c.job_sha256 == job_sha256) & (table.c.site == site) & (table.c.round < before)
        )
    ).scalar()
    receipts = receipts_of(connection, job_sha256, charged or 0, before)
    known = _head(connection, tables.confirmed_heads, site)
    if known is None:
        return receipts, []
    others = [] if charged else [s.receipt.heads.get(site) for s in _last_receipts(connection)]
    prove = [known]
    for head in others:
        if head is not None and not any(head.is_same(other) for other in prove):
            prove.append(head)
    return receipts, prove


def _last_receipts(connection: Connection) -> list[SignedReceipt]:
    """The last receipt of each of the latest jobs."""
    table = tables.round_receipts
    last = sa.select(table.c.job_sha256, sa.func.max(table.c.round).label("round")).group_by(
        table.c.job_sha256
    )
    found = last.subquery()
    query = (
        sa.select(table.c.content)
        .join(found, (found.c.job_sha256 == table.c.job_sha256) & (found.c.round == table.c.round))
        .join(tables.jobs, tables.jobs.c.sha256 == table.c.job_sha256)
        .order_by(tables.jobs.c.number.desc())
        .limit(_MOST_JOBS)
    )
    return [read_receipt(bytes(content)) for content in connection.execute(query).scalars()]


def _job(connection: Connection, job_sha256: str) -> Job:
    query = sa.select(tables.jobs.c.signed).where(tables.jobs.c.sha256 == job_sha256)
    return parse_signed_job(bytes(connection.execute(query).scalar_one())).job


def _asked(connection: Connection, job: Job, round_: int) -> tuple[str, ...]:
    """Who may have been asked, for a round or for the counts after the last."""
    counts, table = tables.counts.c, tables.dispatches.c
    query = sa.select(counts.site).where(counts.job_sha256 == job.sha256)
    if round_ != job.metrics_round:
        query = sa.select(table.site).where(table.job_sha256 == job.sha256, table.round == round_)
    return tuple(sorted(connection.execute(query).scalars()))


def _head(connection: Connection, table: sa.Table, site: str) -> HeadOf | None:
    row = connection.execute(sa.select(table).where(table.c.site == site)).mappings().first()
    return None if row is None else HeadOf(**{name: row[name] for name in HeadOf.model_fields})


def now() -> str:
    """The server's clock, as its tables and receipts have it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
