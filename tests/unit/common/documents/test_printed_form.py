"""PDFs that are not as they were drawn here are told apart, and cost no more than true ones."""

import re
import tracemalloc
import zlib
from dataclasses import replace

import pytest

from common.documents.paper import PRODUCER, pdf_of
from common.documents.printed_form import is_same, producer_of
from common.documents.sheet import Prose, Section, Sheet
from common.errors import InvalidInput
from tests.other_print import (
    Change,
    PdfObject,
    anew,
    bursting,
    doubled,
    growing,
    misnumbered,
    repacked,
    with_streams,
)

_MEGABYTE = 2**20


@pytest.fixture(scope="module")
def drawn() -> bytes:
    """The document that all of these should be."""
    words = Section("Words", (Prose("a sentence, and another one"),))
    return pdf_of(Sheet("test", "Small", (), (), (words,), "2026-11-28T01:00:00Z", "foot"))


def test_the_same_content_packed_otherwise_is_the_same(drawn: bytes) -> None:
    packed = repacked(drawn)
    assert len(packed) != len(drawn)
    assert is_same(packed, drawn)
    assert anew(drawn, lambda objects: objects) == drawn


def plain(objects: list[PdfObject]) -> list[PdfObject]:
    """A stream that is not packed, with more in it."""
    at = next(n for n, one in enumerate(objects) if one.stream and not one.is_packed)
    longer = replace(objects[at], stream=(objects[at].stream or b"") + b"\n")
    return [*objects[:at], longer, *objects[at + 1 :]]


@pytest.mark.parametrize("change", [bursting, growing, plain])
def test_longer_streams_are_read_no_further_than_they_should_go(
    drawn: bytes, change: Change
) -> None:
    other = anew(drawn, change)
    tracemalloc.start()
    try:
        assert not is_same(other, drawn)
        assert tracemalloc.get_traced_memory()[1] < 4 * _MEGABYTE
    finally:
        tracemalloc.stop()


def test_an_object_more_or_less_is_another_document(drawn: bytes) -> None:
    more = [PdfObject(99, b"<<\n/Length 0\n>>", b"words")]

    def longer(objects: list[PdfObject]) -> list[PdfObject]:
        return [*objects, *(replace(one, number=len(objects) + 1) for one in more)]

    assert not is_same(anew(drawn, longer), drawn)
    assert not is_same(anew(drawn, lambda objects: objects[:-1]), drawn)


@pytest.mark.parametrize(
    ("change", "shift", "words"),
    [
        (with_streams(lambda raw: raw + b"more"), 0, "end where they say"),
        (with_streams(lambda raw: raw[:-1]), 0, "end where they say"),
        (with_streams(lambda raw: zlib.compress(zlib.decompress(raw))[2:]), 0, "that inflate"),
        (doubled, 0, "number its objects"),
        (misnumbered, 0, "number its objects"),
        (lambda objects: objects, 1, "the table of its objects"),
    ],
    ids=["more", "less", "no zlib", "doubled", "misnumbered", "shifted"],
)
def test_another_form_is_refused(drawn: bytes, change: Change, shift: int, words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        is_same(anew(drawn, change, shift), drawn)


def test_an_end_of_many_trailers_is_read_once(drawn: bytes) -> None:
    """A megabyte of them, over which a pattern with two gaps would go on for hours."""
    start = drawn[: drawn.index(b"trailer\n")]
    with pytest.raises(InvalidInput, match="a trailer of its table"):
        is_same(start + b"trailer\n" * (_MEGABYTE // 8), drawn)
    with pytest.raises(InvalidInput, match="the table of its objects"):
        is_same(start[: start.index(b"xref")] + b"xref\n0 1\n" + b"trailer\n" * 100_000, drawn)


@pytest.mark.parametrize(
    "producer",
    [
        "fpdf2 9.9.9. This PDF was checked against the HTML and says the same",
        "fpdf2 9.9.9, fonttools 4.1 and says the same, pymupdf-fonts 1.0",
        "words 2.8, fonttools 4.1, pymupdf-fonts 1.0",
        "fpdf2 2.8, fonttools 4.1",
    ],
)
def test_a_pdf_names_libraries_by_their_versions_and_says_no_more(
    drawn: bytes, producer: str
) -> None:
    assert producer_of(drawn) == PRODUCER
    line = f"/Producer ({producer})\n".encode()
    with pytest.raises(InvalidInput, match="names the fpdf2"):
        producer_of(re.sub(rb"/Producer \(.*\)\n", line, drawn))
    with pytest.raises(InvalidInput, match="names the fpdf2"):
        producer_of(drawn + line)
