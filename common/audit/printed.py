"""A bundle's PDFs against its evidence: what they draw is what is drawn here of the same pages.

Not covered: PDFs that other versions of the libraries drew, which decide nothing. Whoever writes a
bundle can name other versions in all of its PDFs and in its list of what is installed.
"""

from collections.abc import Mapping

from common.audit.claims import Claim, unchecked
from common.audit.documents import printed_sheets
from common.audit.evidence import Evidence
from common.documents.paper import PRODUCER, pdf_of
from common.documents.printed_form import DRAWING, is_same, producer_of
from common.documents.sheet import Sheet
from common.errors import InvalidInput
from common.strict_json import parse_json
from common.words import counted

_BILL = "sbom.cdx.json"


def check_printed(documents: Mapping[str, bytes], evidence: Evidence) -> Claim:
    """Each PDF draws, with the same letters, what is drawn here of the page that it is of.

    Args:
        documents: by their names below ``documents/``.
        evidence: what they are about.

    Raises:
        InvalidInput: one is no PDF of ours, draws something else, or is of no page here; or they
            name other libraries than each other, or than what the bundle says is installed.
    """
    printed = {name: data for name, data in sorted(documents.items()) if name.endswith(".pdf")}
    if not printed:
        return Claim("printed", "", "pass", "no PDF is here")
    due = printed_sheets(documents, evidence)
    strangers = [name for name in printed if name.removesuffix(".pdf") not in due]
    if strangers:
        raise InvalidInput(
            f"{strangers[0]} must be of a page that has evidence here, got one of none"
        )
    producer = _producer(printed, documents.get(_BILL))
    if producer != PRODUCER:
        why = f"drawn by {producer}, here it is {PRODUCER}: whether they say the same is open"
        return unchecked("printed", f"{why}. Read the HTML")
    for name, data in printed.items():
        _require_drawn(name, data, due[name.removesuffix(".pdf")])
    return Claim("printed", "", "pass", f"{counted(len(printed), 'PDF')} drawn anew, the same")


def _producer(printed: Mapping[str, bytes], bill: bytes | None) -> str:
    """What drew all of the PDFs, which is what the bill of materials names, where there is one."""
    found = {name: _named(name, data) for name, data in printed.items()}
    first = next(iter(found))
    for name, producer in found.items():
        if producer != found[first]:
            raise InvalidInput(f"{name} must be drawn by {found[first]} as {first}, got {producer}")
    if bill is not None and installed(bill) != found[first]:
        raise InvalidInput(
            f"{first} must be drawn by what {_BILL} says is installed, got {found[first]}"
        )
    return found[first]


def _named(name: str, data: bytes) -> str:
    try:
        return producer_of(data)
    except InvalidInput as error:
        raise InvalidInput(f"{name} {error}") from error


def installed(bill: bytes) -> str:
    """The libraries that draw, with the versions that a bill of materials names, as a PDF does.

    Raises:
        InvalidInput: it names none of one, or is no bill.
    """
    try:
        versions = {part["name"]: part["version"] for part in parse_json(bill)["components"]}
        return ", ".join(f"{name} {versions[name]}" for name in DRAWING)
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidInput(f"{_BILL} must name {', '.join(DRAWING)}, got none of one") from error


def _require_drawn(name: str, data: bytes, sheet: Sheet) -> None:
    made = pdf_of(sheet)
    try:
        if data != made and not is_same(data, made):
            raise InvalidInput("must draw what the evidence says, got other pages or letters")
    except InvalidInput as error:
        raise InvalidInput(f"{name} {error}") from error
