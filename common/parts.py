"""How many fields a protobuf message has, counted before it is parsed.

A field can be two bytes on the wire and becomes an object of some hundred, or, in a Flower
message, a record in dictionaries: a message within its size could hold the receiver for a minute.
The walk follows the schema, skips strings and bytes unread, and ends at the first field too many.

Encoding: https://protobuf.dev/programming-guides/encoding/

Not covered: what the fields say.
"""

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from common.errors import UpdateRejected

# Ours have some sixty.
MOST_PARTS = 4096
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
_WIDTH = {_FIXED64: 8, _FIXED32: 4}
_TEXT = (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES)


def span_of(data: bytes, number: int, total: int) -> tuple[int, int] | None:
    """Where the field ``number`` starts and ends in a message of ``total`` bytes, seen from ahead.

    Args:
        data: the message's first bytes.
        number: of a field with a length.
        total: of the whole message.

    Returns:
        Its span, where it is the message's last field and no other is it as well, and begins in
        ``data``; else ``None``.
    """
    at = 0
    try:
        while at < len(data):
            tag, at = _varint(data, at, len(data))
            start, at = _skip(data, at, total, tag & 7)
            if tag >> 3 == number:
                return (start, at) if at == total and tag & 7 == _LENGTH else None
    except ValueError:
        return None
    return None


def varint(value: int) -> bytes:
    """A number >= 0 as it stands on the wire."""
    groups = bytearray()
    while value > 0x7F:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*groups, value])


def require_few_parts(data: bytes, kind: Descriptor) -> None:
    """Check that a message of type ``kind`` has at most 4,096 fields, within each other or not.

    A packed list counts each of its bytes, which is at least each of its numbers.

    Raises:
        UpdateRejected: it has more.
        ValueError: it is no message.
    """
    spans, parts = [(0, len(data), kind)], 0
    while spans:
        at, end, kind = spans.pop()
        while at < end:
            tag, at = _varint(data, at, end)
            start, at = _skip(data, at, end, tag & 7)
            parts += 1
            field = kind.fields_by_number.get(tag >> 3) if tag & 7 == _LENGTH else None
            if field is not None and field.message_type is not None:
                spans.append((start, at, field.message_type))
            elif field is not None and field.type not in _TEXT:
                parts += at - start
            if parts > MOST_PARTS:
                raise UpdateRejected(f"message must have at most {MOST_PARTS} fields, got more")


def _skip(data: bytes, at: int, end: int, wire_type: int) -> tuple[int, int]:
    """Where a field's content starts and ends."""
    start = at
    if wire_type == _VARINT:
        _, at = _varint(data, at, end)
    elif wire_type == _LENGTH:
        size, start = _varint(data, at, end)
        at = start + size
    elif wire_type in _WIDTH:
        at += _WIDTH[wire_type]
    else:  # groups, which proto3 does not have
        raise ValueError(f"field must be of a known wire type, got {wire_type}")
    if at > end:
        raise ValueError(f"field must end within its message, got {at - end} bytes more")
    return start, at


def _varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    value = 0
    for place in range(at, min(end, at + 10)):
        value |= (data[place] & 0x7F) << (7 * (place - at))
        if data[place] < 0x80:
            return value, place + 1
    raise ValueError("number must be a varint of at most 10 bytes, got another")
