"""A ledger as a file that somebody else can check: JSON lines of its rows, and its signed head.

Not covered: whose key signed (compare it with the site's certificate), and whether the head is the
latest (compare it with the one that the server witnessed).
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from common.errors import InvalidInput, LedgerBroken
from common.privacy.account import Account
from common.privacy.ledger import Chain, Head, Row
from common.strict_json import parse_json

_ROW = {"seq": int, "body": str, "hash": str, "signature": str}
_HEAD = {"size": int, "root": str, "signature": str, "public_key": str}


@dataclass(frozen=True, slots=True)
class Extract:
    """All rows of a ledger, and the head over them."""

    rows: tuple[Row, ...]
    head: Head


def write_extract(rows: Sequence[Row], head: Head) -> bytes:
    """One line a row, bodies as they were signed, and the head as the last line."""
    lines: list[dict[str, object]] = [
        {
            "seq": row.seq,
            "body": row.body.decode(),
            "hash": row.hash.hex(),
            "signature": row.signature.hex(),
        }
        for row in rows
    ]
    lines.append({"head": asdict(head)})
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


def read_extract(data: bytes) -> Extract:
    """What ``write_extract`` wrote; nothing of it is checked yet.

    Raises:
        InvalidInput: it is no such file.
    """
    try:
        *lines, last = [parse_json(line) for line in data.decode().splitlines()]
        return Extract(tuple(_row(line) for line in lines), read_head(_of(last, {"head": dict})))
    except ValueError as error:
        raise InvalidInput("extract must be a ledger's JSON lines and a head, got other") from error


def read_head(document: Any) -> Head:  # noqa: ANN401 -- what JSON can hold
    """The head of ``{"head": {...}}``, or of the inner object alone; nothing is checked yet.

    Raises:
        InvalidInput: there is none in it.
    """
    inner = document.get("head", document) if isinstance(document, dict) else None
    try:
        return Head(**_of(inner, _HEAD))
    except ValueError as error:
        raise InvalidInput("head must hold size, root, signature and public_key") from error


def replay(extract: Extract) -> Account:
    """What the extract adds up to, once chain, signatures and head have been checked.

    Raises:
        LedgerBroken: at the first thing that does not fit.
    """
    return verified(extract)[1]


def verified(extract: Extract) -> tuple[Chain, Account]:
    """The chain of an extract and what it adds up to; ``replay`` says what is checked.

    Raises:
        LedgerBroken: at the first thing that does not fit.
    """
    account, chain = Account(), Chain()
    for row in extract.rows:
        account.apply(chain.extend(row))
    head = extract.head
    if (head.size, head.root) != (chain.size, chain.root().hex()):
        raise LedgerBroken(
            f"ledger's head must be over its {chain.size} entries, got one over {head.size} others"
        )
    if head.public_key != chain.tail.public_key or not head.is_signed():
        raise LedgerBroken("ledger's head must be signed by its last key, got another's signature")
    return chain, account


def _row(line: Any) -> Row:  # noqa: ANN401
    said = _of(line, _ROW)
    digest, signature = bytes.fromhex(said["hash"]), bytes.fromhex(said["signature"])
    return Row(said["seq"], said["body"].encode(), digest, signature)


def _of(found: Any, schema: dict[str, type]) -> dict[str, Any]:  # noqa: ANN401
    """An object with these keys and types, and no others; True is no integer."""
    if not isinstance(found, dict) or {k: type(v) for k, v in found.items()} != schema:
        raise ValueError("another schema")
    return found
