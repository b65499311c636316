"""A bundle's PDFs against its evidence: what they draw is what is drawn here of the same pages.

Not covered: PDFs that other versions of the libraries drew, which decide nothing.
"""

from collections.abc import Mapping

from common.audit.claims import Claim, unchecked
from common.audit.documents import printed_sheets
from common.audit.evidence import Evidence
from common.documents.paper import PRODUCER, pdf_of
from common.documents.printed_form import is_same, producer_of
from common.documents.sheet import Sheet
from common.errors import InvalidInput
from common.words import counted


def check_printed(documents: Mapping[str, bytes], evidence: Evidence) -> Claim:
    """Each PDF draws, with the same letters, what is drawn here of the page that it is of.

    Args:
        documents: by their names below ``documents/``.
        evidence: what they are about.

    Raises:
        InvalidInput: one is no PDF of ours, draws something else, or is of no page here.
    """
    printed = sorted(name for name in documents if name.endswith(".pdf"))
    if not printed:
        return Claim("printed", "", "pass", "no PDF is here")
    due = printed_sheets(documents, evidence)
    others = {
        drawn_by
        for name in printed
        if (drawn_by := _drawn_by(name, documents[name], due.get(name.removesuffix(".pdf"))))
    }
    if not others:
        return Claim("printed", "", "pass", f"{counted(len(printed), 'PDF')} drawn anew, the same")
    why = f"drawn by {min(others):.200}, here it is {PRODUCER}: whether they say the same is open"
    return unchecked("printed", f"{why}. Read the HTML")


def _drawn_by(name: str, data: bytes, sheet: Sheet | None) -> str:
    """The other versions that drew a PDF; empty where it is as drawn here."""
    if sheet is None:
        raise InvalidInput(f"{name} must be of a page that has evidence here, got one of none")
    try:
        producer = producer_of(data)
        if producer != PRODUCER:
            return producer
        made = pdf_of(sheet)
        if data != made and not is_same(data, made):
            raise InvalidInput("must draw what the evidence says, got other pages or letters")
    except InvalidInput as error:
        raise InvalidInput(f"{name} {error}") from error
    return ""
