"""True PDFs of ours written anew with other objects in them, and a table that fits those."""

import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

_TABLE = re.compile(
    rb"xref\n0 \d+\n0{10} 65535 f \n((?:\d{10} 00000 n \n)+)(trailer\n.*?)startxref", re.DOTALL
)


@dataclass(frozen=True)
class PdfObject:
    """One object: ``stream`` is as it stands in the file, ``None`` where there is none."""

    number: int
    dictionary: bytes
    stream: bytes | None = None

    @property
    def is_packed(self) -> bool:
        """Whether its stream is deflated."""
        return b"/FlateDecode" in self.dictionary

    def to_bytes(self) -> bytes:
        """As it is written, its length put right."""
        start = b"%d 0 obj\n" % self.number
        if self.stream is None:
            return start + self.dictionary + b"\nendobj\n"
        length = b"/Length %d\n" % len(self.stream)
        said = re.sub(rb"/Length \d+\n", length, self.dictionary)
        return start + said + b"\nstream\n" + self.stream + b"\nendstream\nendobj\n"


Change = Callable[[list[PdfObject]], Sequence[PdfObject]]


def anew(pdf: bytes, change: Change, shift: int = 0) -> bytes:
    """``pdf`` with its objects changed; the table leads ``shift`` bytes past each of them."""
    found = _TABLE.search(pdf)
    assert found is not None
    places = [int(line[:10]) for line in found[1].splitlines()]
    ends = [*places[1:], found.start()]
    objects = [_read(pdf[start:end]) for start, end in zip(places, ends, strict=True)]
    out, rows = pdf[: places[0]], b"0000000000 65535 f \n"
    for one in change(objects):
        rows += b"%010d 00000 n \n" % (len(out) + shift)
        out += one.to_bytes()
    tail = b"xref\n0 %d\n" % (len(rows) // 20) + rows + found[2]
    return out + tail + b"startxref\n%d\n%%%%EOF\n" % len(out)


def _read(data: bytes) -> PdfObject:
    number, _, rest = data.partition(b" 0 obj\n")
    dictionary, has_stream, stream = rest.removesuffix(b"\nendobj\n").partition(b"\nstream\n")
    raw = stream.removesuffix(b"\nendstream") if has_stream else None
    return PdfObject(int(number), dictionary, raw)


def with_streams(change: Callable[[bytes], bytes]) -> Change:
    """The change of every deflated stream, as it stands in the file."""
    return lambda objects: [
        replace(one, stream=change(one.stream)) if one.is_packed and one.stream else one
        for one in objects
    ]


def repacked(pdf: bytes) -> bytes:
    """The same PDF by another zlib: streams compressed less, all places moved."""
    return anew(pdf, with_streams(lambda raw: zlib.compress(zlib.decompress(raw), 1)))


def packed_zeros(megabytes: int) -> bytes:
    """So many zeros, deflated to a thousandth."""
    packer = zlib.compressobj(9)
    return b"".join(packer.compress(bytes(2**20)) for _ in range(megabytes)) + packer.flush()


def bursting(objects: list[PdfObject]) -> list[PdfObject]:
    """Before the others 64 MiB of zeros, ten bytes that are not packed, and a stream after them."""
    packed, plain = b"<<\n/Filter /FlateDecode\n/Length 0\n>>", b"<<\n/Length 0\n>>"
    return [
        PdfObject(1, packed, packed_zeros(64)),
        PdfObject(2, plain, b"x" * 10),
        PdfObject(3, packed, packed_zeros(1)),
        *(replace(one, number=one.number + 3) for one in objects),
    ]


def growing(objects: list[PdfObject]) -> list[PdfObject]:
    """The first deflated stream as one of 64 MiB."""
    at = next(n for n, one in enumerate(objects) if one.is_packed)
    return [*objects[:at], replace(objects[at], stream=packed_zeros(64)), *objects[at + 1 :]]


def doubled(objects: list[PdfObject]) -> list[PdfObject]:
    """The first page's content a second time, under the same number."""
    at = next(n for n, one in enumerate(objects) if one.is_packed)
    return [*objects[: at + 1], *objects[at:]]


def misnumbered(objects: list[PdfObject]) -> list[PdfObject]:
    """The last two numbers the other way about."""
    *others, one, last = objects
    return [*others, replace(one, number=last.number), replace(last, number=one.number)]
