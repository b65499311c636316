"""A PDF of ours taken apart: its objects, each stream inflated, and nothing else in the file.

fpdf2 writes one form: objects in order of their numbers, then a table of where they begin, then a
trailer. Only that form is read, byte by byte from the first to the last, so that no viewer can find
another document in the file. What may differ between two files of the same content is how well
zlib compressed them, and the places and hash that follow from it.

Not covered: PDF by other programs, and other versions of fpdf2, whose form may be another.
"""

import re
import zlib

from common.errors import InvalidInput

MAX_PRINTED_BYTES = 32 * 1024 * 1024
_MOST_INFLATED = 64 * 1024 * 1024
_HEAD = re.compile(rb"%PDF-1\.\d\n%[\x80-\xff]{4}\n")
_OBJECT = re.compile(rb"(\d{1,7}) 0 obj\n(.*?)\n(?=stream\n|endobj\n)", re.DOTALL)
_LENGTH = re.compile(rb"^/Length (\d{1,9})$", re.MULTILINE)
_TAIL = re.compile(
    rb"xref\n0 (\d{1,7})\n(.*?)trailer\n(.*?)startxref\n(\d{1,9})\n%%EOF\n", re.DOTALL
)
_ID = re.compile(rb"/ID \[<[0-9A-F]{32}><[0-9A-F]{32}>\]")
_PRODUCER = re.compile(rb"^/Producer \((fpdf2 [ -'*-\[\]-~]{1,200})\)$", re.MULTILINE)

Part = tuple[bytes, bytes]


def producer_of(data: bytes) -> str:
    """The libraries that a file says it was drawn by.

    Raises:
        InvalidInput: no PDF, or one that names none of ours.
    """
    found = _PRODUCER.search(data)
    if not _HEAD.match(data) or found is None:
        raise InvalidInput("must be a PDF that names the fpdf2 which drew it, got something else")
    return found[1].decode("ascii")


def parts_of(data: bytes) -> tuple[Part, ...]:
    """Each object's dictionary and its stream, inflated; the trailer last.

    Two files of the same parts draw the same pages with the same letters.

    Raises:
        InvalidInput: another form than fpdf2's, or too large.
    """
    if len(data) > MAX_PRINTED_BYTES:
        raise InvalidInput(f"must be at most {MAX_PRINTED_BYTES} bytes, got {len(data)}")
    head = _HEAD.match(data)
    if head is None:
        raise InvalidInput("must be a PDF, got something else")
    at, places, parts, left = head.end(), list[int](), list[Part](), _MOST_INFLATED
    while found := _OBJECT.match(data, at):
        places.append(at)
        if int(found[1]) != len(places):
            raise InvalidInput(f"must number its objects, got {int(found[1])} in a row of others")
        content, at = _stream(data, found.end(), found[2], left)
        left -= len(content)
        parts.append((_LENGTH.sub(b"/Length", found[2]), content))
    return (*parts, (data[: head.end()] + _tail(data, at, places), b""))


def _stream(data: bytes, at: int, dictionary: bytes, most: int) -> tuple[bytes, int]:
    """An object's stream, inflated, and where the next object begins."""
    if data.startswith(b"endobj\n", at):
        return b"", at + len(b"endobj\n")
    lengths, start = _LENGTH.findall(dictionary), at + len(b"stream\n")
    if len(lengths) != 1:
        raise InvalidInput("must say how long each stream is, got none or two of it")
    stop, end = start + int(lengths[0]), b"\nendstream\nendobj\n"
    if not data.startswith(end, stop):
        raise InvalidInput("must have streams as long as they say, got another")
    raw = data[start:stop]
    if b"/Filter /FlateDecode" in dictionary.split(b"\n"):
        raw = _inflated(raw, most)
    return raw, stop + len(end)


def _inflated(data: bytes, most: int) -> bytes:
    inflater = zlib.decompressobj()
    try:
        content = inflater.decompress(data, most + 1)
    except zlib.error as error:
        raise InvalidInput("must have streams that inflate, got another") from error
    if len(content) > most or not inflater.eof or inflater.unused_data:
        raise InvalidInput(f"must have streams of at most {most} bytes, whole, got another")
    return content


def _tail(data: bytes, at: int, places: list[int]) -> bytes:
    """The trailer without its hash, once the table before it was compared with the objects."""
    found = _TAIL.fullmatch(data, at)
    table = b"0000000000 65535 f \n" + b"".join(b"%010d 00000 n \n" % place for place in places)
    if found is None or (int(found[1]), found[2]) != (len(places) + 1, table):
        raise InvalidInput("must end in the table of its objects, got another end")
    if int(found[4]) != at or len(_ID.findall(found[3])) != 1:
        raise InvalidInput("must end in a trailer of its table, got another end")
    return _ID.sub(b"", found[3])
