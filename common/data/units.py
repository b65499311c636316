"""A site's records, grouped into the privacy units that a job promises something to.

Nothing crosses units before the mechanism: a duplicate is dropped only where the same unit has the
same text and label, and a unit's records stay together wherever the file holds them.
"""

from collections.abc import Iterable

from common.config import RECORD
from common.data.readers import drop_duplicates
from common.data.records import Record
from common.errors import InvalidInput


def privacy_units(records: Iterable[Record], unit: str) -> list[list[Record]]:
    """One list of records for each unit, in order of appearance. Sensitive.

    Args:
        records: a site's rows. Sensitive.
        unit: ``record``, where each row is a unit of its own, or the name of what they share.

    Raises:
        InvalidInput: a row that belongs to no unit; names its line alone.
    """
    if unit == RECORD:
        return [[record] for record in records]
    units: dict[str, list[Record]] = {}
    for record in drop_duplicates(records):
        if not record.unit:
            raise InvalidInput(f"line {record.line}: {unit} must be given, got none")
        units.setdefault(record.unit, []).append(record)
    return list(units.values())
