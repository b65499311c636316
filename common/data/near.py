"""Near-duplicates: records that say almost the same, found by MinHash (Broder 1997).

Two texts are near when the sets of their runs of three words have a Jaccard index of at least 0.8.
MinHash proposes pairs, in 25 bands of 5 rows, and misses one that just is near once in twenty
thousand times (https://doi.org/10.1109/SEQUEN.1997.666900); each proposal is then computed exactly,
the likeliest first, until one is near.

Notes made from a template are all proposed to each other. So a band keeps the first 32 texts that
agree in it, and a record is compared with at most 32 of a kind (its unit's, everyone's): no more
time for a crowd, and a near one may be missed there.

Not covered: texts that say the same in other words; what to do about them. Nothing is dropped: a
note and its later version are both records, and across units dropping would link people.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from datasketch import MinHash

from common.data.records import Record

NEAR = 0.8
RUN_WORDS = 3
MOST_RECORDS = 100_000  # beyond, minutes would be spent on two counts
_BANDS, _ROWS = 25, 5
_MOST_AGREEING = 32  # texts that a band keeps for one value
_MOST_COMPARED = 32
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
    shared = len(first & second)
    return shared / (len(first) + len(second) - shared)


def near_duplicates(records: Sequence[Record], units: Sequence[Unit]) -> NearCounts | None:
    """Count records near to an earlier one; ``None`` for more than are counted.

    Args:
        records: Sensitive.
        units: whose each is.
    """
    if len(records) > MOST_RECORDS:
        return None
    sketches: dict[tuple[object, ...], _Sketch] = {}
    everyone = _Index()
    own = {unit: _Index() for unit, count in Counter(units).items() if count > 1}
    within = across = 0
    for record, unit in zip(records, units, strict=True):
        if record.content not in sketches:
            sketches[record.content] = _sketch(record.text)
        sketch = sketches[record.content]
        # The unit's own first: a near one there answers both questions.
        is_within = unit in own and own[unit].has_near(sketch)
        within += is_within
        across += not is_within and everyone.has_near(sketch)
        everyone.add(sketch)
        if unit in own:
            own[unit].add(sketch)
    return NearCounts(within, across)


def near_to(records: Sequence[Record], others: Sequence[Record]) -> int | None:
    """Count the ``records`` near to one of ``others``; ``None`` for more than are counted.

    Args:
        records: of other texts than ``others``. Sensitive.
        others: what they are compared with.
    """
    if len(records) + len(others) > MOST_RECORDS:
        return None
    index = _Index()
    for text in dict.fromkeys(other.text for other in others):
        index.add(_sketch(text))
    texts = Counter(record.text for record in records)
    return sum(count for text, count in texts.items() if index.has_near(_sketch(text)))


@dataclass(frozen=True, slots=True, eq=False)
class _Sketch:
    """One content, equal to itself alone. Sensitive."""

    runs: frozenset[str]
    bands: tuple[bytes, ...]


def _sketch(text: str) -> _Sketch:
    found = runs(text)
    hashed = MinHash(num_perm=_BANDS * _ROWS)
    hashed.update_batch([run.encode("utf-8", "surrogatepass") for run in found])
    rows = hashed.hashvalues.reshape(_BANDS, _ROWS)
    return _Sketch(found, tuple(bytes([band]) + row.tobytes() for band, row in enumerate(rows)))


class _Index:
    """Contents so far, found again by what they are near to."""

    def __init__(self) -> None:
        self._known: set[_Sketch] = set()
        self._bands: defaultdict[bytes, list[_Sketch]] = defaultdict(list)

    def has_near(self, sketch: _Sketch) -> bool:
        """Whether another content of before is near."""
        agreeing = Counter(other for band in sketch.bands for other in self._bands.get(band, ()))
        del agreeing[sketch]
        return any(
            jaccard(sketch.runs, other.runs) >= NEAR
            for other, _ in agreeing.most_common(_MOST_COMPARED)
        )

    def add(self, sketch: _Sketch) -> None:
        """Keep a content; once, however often it comes."""
        if sketch in self._known:
            return
        self._known.add(sketch)
        for band in sketch.bands:
            agreeing = self._bands[band]
            if len(agreeing) < _MOST_AGREEING:
                agreeing.append(sketch)
