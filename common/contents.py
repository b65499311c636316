"""A message's records by name, so that the message is gone once nobody holds it.

Flower's own views (``content.config_records``) refer to themselves: content that was looked at
through one stays, adapter and all, until Python next looks for cycles, which is many messages on.
"""

from flwr.app import ArrayRecord, ConfigRecord, RecordDict


def config_in(content: RecordDict, name: str) -> ConfigRecord | None:
    """The record of that name; ``None`` where there is none, or one of another kind."""
    record = content.get(name)
    return record if isinstance(record, ConfigRecord) else None


def arrays_in(content: RecordDict, name: str) -> ArrayRecord | None:
    """The record of that name; ``None`` where there is none, or one of another kind."""
    record = content.get(name)
    return record if isinstance(record, ArrayRecord) else None
