"""Near-duplicates: records that say almost the same, found by MinHash (Broder 1997).

Two texts are near when the sets of their runs of three words have a Jaccard index of at least 0.8.
MinHash proposes pairs, in 25 bands of 5 rows, and misses one that just is near once in twenty
thousand times (https://doi.org/10.1109/SEQUEN.1997.666900); each proposal is then computed exactly.

Not covered: texts that say the same in other words; what to do about them. Nothing is dropped: a
note and its later version are both records, and across units dropping would link people.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from datasketch import MinHash, MinHashLSH

from common.data.records import Record

NEAR = 0.8
RUN_WORDS = 3
MOST_RECORDS = 100_000  # beyond, minutes would be spent on two counts
_BANDS, _ROWS = 25, 5
_WORD = re.compile(r"\w+")

Unit = tuple[str, int]


@dataclass(frozen=True, slots=True)
class NearCounts:
    """Records that are near to an earlier one of another content. Sensitive.

    Attributes:
        within: to one of their own unit.
        across: to one of another unit, and to none of their own.
    """

    within: int
    across: int


def runs(text: str) -> frozenset[str]:
    """The runs of three words of a text, or all of its words where it has fewer.

    >>> sorted(runs("No fever, no pain."))
    ['fever no pain', 'no fever no']
    """
    words = _WORD.findall(text.lower())
    starts = range(max(1, len(words) - RUN_WORDS + 1))
    return frozenset(" ".join(words[i : i + RUN_WORDS]) for i in starts)


def jaccard(first: frozenset[str], second: frozenset[str]) -> float:
    """Shared members over all members."""
    return len(first & second) / len(first | second)


def near_duplicates(records: Sequence[Record], units: Sequence[Unit]) -> NearCounts | None:
    """Count records near to an earlier one; ``None`` for more than are counted.

    Args:
        records: Sensitive.
        units: whose each is.
    """
    if len(records) > MOST_RECORDS:
        return None
    seen: dict[tuple[object, ...], set[Unit]] = {}
    index = _Index()
    within = across = 0
    for record, unit in zip(records, units, strict=True):
        owners = [seen[content] for content in index.near(record)]
        is_within = any(unit in owner for owner in owners)
        within += is_within
        across += bool(owners) and not is_within
        seen.setdefault(record.content, set()).add(unit)
    return NearCounts(within, across)


class _Index:
    """Contents so far, found again by what they are near to."""

    def __init__(self) -> None:
        self._lsh = MinHashLSH(num_perm=_BANDS * _ROWS, params=(_BANDS, _ROWS))
        self._runs: dict[tuple[object, ...], frozenset[str]] = {}
        self._hashes: dict[tuple[object, ...], MinHash] = {}

    def near(self, record: Record) -> Iterator[tuple[object, ...]]:
        """Other contents of before that are near to a record's, which is added."""
        content = record.content
        if content not in self._runs:
            self._add(content, record.text)
        mine = self._runs[content]
        for other in self._lsh.query(self._hashes[content]):
            if other != content and jaccard(mine, self._runs[other]) >= NEAR:
                yield other

    def _add(self, content: tuple[object, ...], text: str) -> None:
        found = runs(text)
        hashed = MinHash(num_perm=_BANDS * _ROWS)
        hashed.update_batch([run.encode("utf-8", "surrogatepass") for run in found])
        self._runs[content], self._hashes[content] = found, hashed
        self._lsh.insert(content, hashed)
