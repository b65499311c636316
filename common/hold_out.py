"""Which of a site's units train and which are held out for counting: never both.

Each unit goes by its own identity under a keyed hash, HMAC-SHA256, whose key the site's operating
system drew when it accepted the job. So the division outlives the process, nobody outside can tell
who is on which side, and whether one unit is there moves no other.

What that gives: a unit is seen by training or by the counts, and never pays for both. What is
claimed does not rest on it: both are composed as if every unit were in both.

Not covered: a person under two identities, such as one in two records where a unit is a record;
equal records are on the same side.
"""

import hashlib
import hmac
import json
from collections.abc import Sequence

from common.config import RECORD
from common.data.records import Record

_KEY_DOMAIN = b"veiltune hold-out v1\n"


def hold_out_key(salt: str, job_sha256: str) -> bytes:
    """The key of one job's division, from the random bits of the entry that accepted it."""
    return hashlib.sha256(_KEY_DOMAIN + f"{salt}\n{job_sha256}".encode()).digest()


def is_held_out(identity: bytes, key: bytes, share: float) -> bool:
    """Whether the unit of that identity is counted; else it trains.

    Args:
        identity: what tells the unit from others. Sensitive.
        key: the site's, 32 bytes.
        share: the chance, in (0, 1); rounded down to 53 bits.
    """
    digest = hmac.digest(key, identity, "sha256")
    return int.from_bytes(digest[:8], "big") >> 11 < int(share * 2.0**53)


def held_out(units: Sequence[Sequence[Record]], unit: str, key: bytes, share: float) -> list[bool]:
    """For each of ``units`` whether it is held out. Sensitive.

    Args:
        units: each at least one record. Sensitive.
        unit: what the job calls one.
        key: the site's.
        share: the chance of each.
    """
    return [is_held_out(_identity(records[0], unit), key, share) for records in units]


def _identity(record: Record, unit: str) -> bytes:
    told = record.content if unit == RECORD else (record.unit,)
    return json.dumps(told).encode()
