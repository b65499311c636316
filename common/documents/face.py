"""The faces that documents are printed in: FiraGO, and Ubuntu Mono for hashes.

Both come with pymupdf-fonts under free licences. Not covered: characters that they lack, which are
written by number; scripts whose letters join.
"""

from collections.abc import Iterator
from functools import lru_cache
from io import BytesIO

import pymupdf_fonts
from fontTools.ttLib import TTFont

from common.documents.sheet import shown

# Family, style, and the name in the package.
FACES = (("sans", "", "figo"), ("sans", "B", "figbo"), ("mono", "", "ubuntm"))
_SHAPING = {"GDEF", "GPOS", "GSUB", "kern"}


def drawn(words: str) -> str:
    """Words on one line, of characters that the faces have."""
    return "".join(_characters(shown(words)))


def _characters(words: str) -> Iterator[str]:
    known = _known()
    for character in words:
        yield character if ord(character) in known else f"U+{ord(character):04X}"


@lru_cache(maxsize=len(FACES))
def face(name: str) -> bytes:
    """A face without its tables for shaping, which nothing here reads and which take seconds."""
    font = TTFont(BytesIO(pymupdf_fonts.myfont(name)), recalcTimestamp=False)
    for table in _SHAPING & set(font.keys()):
        del font[table]
    saved = BytesIO()
    font.save(saved)
    return saved.getvalue()


@lru_cache(maxsize=1)
def _known() -> frozenset[int]:
    """What both faces of words can draw."""
    cmaps = [TTFont(BytesIO(face(name))).getBestCmap() for *_, name in FACES[:2]]
    return frozenset(cmaps[0]) & frozenset(cmaps[1])
