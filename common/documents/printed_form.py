"""A PDF of ours taken apart: its objects, each stream inflated, and nothing else in the file.

fpdf2 writes one form: objects in order of their numbers, then a table of where they begin, then a
trailer. Only that form is read, byte by byte from the first to the last, so that no viewer can find
another document in the file. What may differ between two files of the same content is how well
zlib compressed them, and the places and hash that follow from it.

A file of others is held against one that was drawn here: no stream of it is inflated further than
the one that it should be, and nothing is read after the first part that differs.

Not covered: PDF by other programs, and other versions of fpdf2, whose form may be another.
"""

import re
import zlib
from collections.abc import Iterable, Iterator
from itertools import repeat, zip_longest

from common.config import VERSION_PATTERN
from common.errors import InvalidInput

MAX_PRINTED_BYTES = 32 * 1024 * 1024
DRAWING = ("fpdf2", "fonttools", "pymupdf-fonts")  # the libraries, as a PDF names them
_MOST_INFLATED = 64 * 1024 * 1024  # bytes, of a stream of ours
_HEAD = re.compile(rb"%PDF-1\.\d\n%[\x80-\xff]{4}\n")
_OBJECT = re.compile(rb"(\d{1,7}) 0 obj\n(.*?)\n(?=stream\n|endobj\n)", re.DOTALL)
_LENGTH = re.compile(rb"^/Length (\d{1,9})$", re.MULTILINE)
_ID = re.compile(rb"/ID \[<[0-9A-F]{32}><[0-9A-F]{32}>\]")
_VERSIONS = ", ".join(f"{name} {VERSION_PATTERN}" for name in DRAWING)
_PRODUCER = re.compile(rf"^/Producer \(({_VERSIONS})\)$".encode(), re.MULTILINE)

Part = tuple[bytes, bytes]


def producer_of(data: bytes) -> str:
    """The libraries that a file says it was drawn by, with their versions and no other words.

    Raises:
        InvalidInput: no PDF, or one that does not name just ours, once.
    """
    found = _PRODUCER.search(data)
    if not _HEAD.match(data) or found is None or data.count(b"\n/Producer ") != 1:
        raise InvalidInput(f"must be a PDF that names the {DRAWING[0]} which drew it, got another")
    return found[1].decode("ascii")


def is_same(data: bytes, made: bytes) -> bool:
    """Whether a file draws the same pages with the same letters as one that was drawn here.

    Raises:
        InvalidInput: another form than fpdf2's, or too large.
    """
    if len(data) > MAX_PRINTED_BYTES:
        raise InvalidInput(f"must be at most {MAX_PRINTED_BYTES} bytes, got {len(data)}")
    own = tuple(_parts(made, repeat(_MOST_INFLATED)))
    found = _parts(data, (len(content) for _, content in own))
    return all(one == other for one, other in zip_longest(found, own))


def _parts(data: bytes, most: Iterable[int]) -> Iterator[Part]:
    """Each object's dictionary and its stream, inflated; the trailer last.

    Args:
        data: the file.
        most: how long each stream should be, beyond which one byte is inflated and no more.

    Raises:
        InvalidInput: another form than fpdf2's.
    """
    head = _HEAD.match(data)
    if head is None:
        raise InvalidInput("must be a PDF, got something else")
    at, places, limits = head.end(), list[int](), iter(most)
    while found := _OBJECT.match(data, at):
        places.append(at)
        if int(found[1]) != len(places):
            raise InvalidInput(f"must number its objects, got {int(found[1])} in a row of others")
        content, at = _stream(data, found.end(), found[2], next(limits, 0))
        yield _LENGTH.sub(b"/Length", found[2]), content
    yield data[: head.end()] + _tail(data, at, places), b""


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
    if b"/Filter /FlateDecode" in dictionary.split(b"\n"):
        return _inflated(data[start:stop], most), stop + len(end)
    return data[start:stop], stop + len(end)


def _inflated(data: bytes, most: int) -> bytes:
    """All of a stream, or its first ``most + 1`` bytes."""
    inflater = zlib.decompressobj()
    try:
        content = inflater.decompress(data, most + 1)
    except zlib.error as error:
        raise InvalidInput("must have streams that inflate, got another") from error
    if len(content) <= most and (not inflater.eof or inflater.unused_data):
        raise InvalidInput("must have streams that end where they say, got another")
    return content


def _tail(data: bytes, at: int, places: list[int]) -> bytes:
    """The trailer without its hash, once the table before it was compared with the objects."""
    table = b"0000000000 65535 f \n" + b"".join(b"%010d 00000 n \n" % place for place in places)
    due = b"xref\n0 %d\n" % (len(places) + 1) + table + b"trailer\n"
    if not data.startswith(due, at):
        raise InvalidInput("must end in the table of its objects, got another end")
    trailer, _, end = data[at + len(due) :].partition(b"startxref\n")
    if end != b"%d\n%%%%EOF\n" % at or len(_ID.findall(trailer)) != 1:
        raise InvalidInput("must end in a trailer of its table, got another end")
    return _ID.sub(b"", trailer)
