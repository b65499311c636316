"""The tables of the server's durable state (server/checkpoint.py reads and writes them)."""

from typing import Any

import sqlalchemy as sa

metadata = sa.MetaData()
jobs = sa.Table(
    "jobs",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True),  # the order of submission
    sa.Column("sha256", sa.String(64), unique=True, nullable=False),
    sa.Column("name", sa.String(63), nullable=False),
    sa.Column("signed", sa.LargeBinary, nullable=False),
    sa.Column("state", sa.String(8), nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("submitted_at", sa.String(20), nullable=False),
    sa.Column("changed_at", sa.String(20), nullable=False),
    sqlite_autoincrement=True,
)


def _of_a_job() -> sa.Column[str]:
    return sa.Column("job_sha256", sa.ForeignKey("jobs.sha256"), primary_key=True)


def _a_sites_head() -> list[sa.Column[Any]]:
    return [
        sa.Column("site", sa.String(63), primary_key=True),
        sa.Column("size", sa.BigInteger, nullable=False),
        sa.Column("root", sa.String(64), nullable=False),
        sa.Column("signature", sa.String(400), nullable=False),
        sa.Column("public_key", sa.String(400), nullable=False),
        sa.Column("seen_at", sa.String(20), nullable=False),
    ]


dispatches = sa.Table(
    "dispatches",
    metadata,
    _of_a_job(),
    sa.Column("round", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("site", sa.String(63), primary_key=True),
)
rounds = sa.Table(
    "rounds",
    metadata,
    _of_a_job(),
    sa.Column("round", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("accuracy", sa.Double),
    sa.Column("macro_f1", sa.Double),
    sa.Column("bytes_up", sa.BigInteger, nullable=False),
    sa.Column("seconds", sa.Double, nullable=False),
    sa.Column("input_sha256", sa.String(64), nullable=False),
    sa.Column("output_sha256", sa.String(64), nullable=False),
    sa.Column("vector_sha256", sa.String(64), nullable=False),
    sa.Column("entity_f1", sa.Double),
    sa.Column("bytes_down", sa.BigInteger),
)
receipts = sa.Table(
    "receipts",
    metadata,
    _of_a_job(),
    sa.Column("round", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("site", sa.String(63), primary_key=True),
    sa.Column("payload_sha256", sa.String(64), nullable=False),
    sa.Column("steps", sa.BigInteger, nullable=False),
    sa.Column("charged_steps", sa.BigInteger, nullable=False),
    sa.Column("bytes_up", sa.BigInteger, nullable=False),
    sa.Column("accepted", sa.Boolean, nullable=False),
    sa.Column("was_cut", sa.Boolean),
)
# Who was asked for a job's counts, and what came: no counts where a site gave none.
counts = sa.Table(
    "counts",
    metadata,
    _of_a_job(),
    sa.Column("site", sa.String(63), primary_key=True),
    sa.Column("counts", sa.LargeBinary),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("payload_sha256", sa.String(64), nullable=False),  # empty until there is an answer
    sa.Column("bytes_up", sa.BigInteger, nullable=False),
)
# Each site's longest ledger head, over all jobs: an older copy of its account cannot match it.
heads = sa.Table(
    "heads",
    metadata,
    *_a_sites_head(),
)
# The head of each site that was confirmed last: what its next charge is to go on from.
confirmed_heads = sa.Table(
    "confirmed_heads",
    metadata,
    *_a_sites_head(),
)
# One charge a site and round, as common/privacy/charge.py writes it; the first one stays.
charges = sa.Table(
    "charges",
    metadata,
    _of_a_job(),
    sa.Column("round", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("site", sa.String(63), primary_key=True),
    sa.Column("content", sa.LargeBinary, nullable=False),
)
# Each site's last word on a job, from those that were there when it ended; the first one stays.
endings = sa.Table(
    "endings",
    metadata,
    _of_a_job(),
    sa.Column("site", sa.String(63), primary_key=True),
    sa.Column("content", sa.LargeBinary, nullable=False),
)
# The signed receipt of each round that was closed with a certificate at hand.
round_receipts = sa.Table(
    "round_receipts",
    metadata,
    _of_a_job(),
    sa.Column("round", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("sha256", sa.String(64), nullable=False),
    sa.Column("content", sa.LargeBinary, nullable=False),
)


def _adapters(name: str) -> sa.Table:
    """One global adapter a job: a hundred rounds of a large one would fill a disk."""
    return sa.Table(
        name,
        metadata,
        _of_a_job(),
        sa.Column("round", sa.Integer, nullable=False),
        sa.Column("vector", sa.LargeBinary, nullable=False),
    )


adapters = _adapters("adapters")  # the latest
best_adapters = _adapters("best_adapters")  # the best, of jobs with patience
memories = _adapters("memories")  # a server optimiser's, of jobs that have one
# Columns that tables of an earlier version do not have; nullable, since their rows have no value.
ADDED = (rounds.c.entity_f1, rounds.c.bytes_down, receipts.c.was_cut)
