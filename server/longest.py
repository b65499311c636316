"""The longest ledger head that each site has shown, in the server's tables.

Every function works within a transaction that its caller opened (server/checkpoint.py). Not
covered: heads that were confirmed, with their proofs (server/receipts.py).
"""

import dataclasses

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from common.privacy.ledger import Head
from server import tables
from server.receipts import now
from server.records import Witnessed, names


def keep_longest(connection: Connection, site: str, head: Head) -> Witnessed:
    """Keep a head if it is longer than the one that is kept; how it stands to that."""
    table, known = tables.heads, longest(connection, site)
    if known is not None and head.size <= known.size:
        if head.size < known.size:
            return "shorter"
        return "same" if head.root == known.root else "forked"
    connection.execute(table.delete().where(table.c.site == site))
    connection.execute(table.insert().values(site=site, seen_at=now(), **dataclasses.asdict(head)))
    return "longer"


def longest(connection: Connection, site: str) -> Head | None:
    """The longest head that a site has shown."""
    query = sa.select(tables.heads).where(tables.heads.c.site == site)
    row = connection.execute(query).mappings().first()
    return None if row is None else Head(**{name: row[name] for name in names(Head)})
