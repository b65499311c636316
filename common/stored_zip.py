"""ZIP files without compression, read with suspicion.

Stored members cannot grow, so no bomb has to be detected. Names are plain relative paths of a
narrow alphabet; no member is linked, encrypted, packed, or there twice under any spelling.

``pack`` makes the one ZIP that holds given files, and ``unpack`` takes no other: it makes it anew
from what it found and compares.

Not covered: what the files are; a file's hash (whoever reads an archive compares it).
"""

import contextlib
import io
import re
import stat
import struct
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath

from common.errors import InvalidInput

_PART = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}"
_NAME = re.compile(rf"{_PART}(?:/{_PART}){{0,7}}")
_UNIX = 3  # who made it, as every system of ours says
MOST_MEMBERS = 60_000  # more would need ZIP64, which has several forms
_END = struct.Struct("<4s4H2IH")  # the last record of a ZIP (APPNOTE 4.3.16)


def is_plain(name: str) -> bool:
    """Whether a file of this name may be in an archive."""
    return _NAME.fullmatch(name) is not None


def member(name: str) -> zipfile.ZipInfo:
    """A plain file to write, mode 0600, dated 1980: a manifest tells when."""
    made = zipfile.ZipInfo(name)
    made.create_system = _UNIX
    made.external_attr = (stat.S_IFREG | 0o600) << 16
    return made


def pack(files: Mapping[str, bytes]) -> bytes:
    """The one ZIP that holds these files."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in sorted(files):
            archive.writestr(member(name), files[name])
    return buffer.getvalue()


def unpack(data: bytes, what: str) -> dict[str, bytes]:
    """The files of a ZIP that ``pack`` made; ``what`` is how errors call it.

    Raises:
        InvalidInput: it did not make these bytes.
    """
    _require_small_directory(data, what)
    with in_words("file", what), zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = archive.infolist()
        check_members(members, len(data), what)
        files = {one.filename: archive.read(one) for one in members}
    if pack(files) != data:
        raise InvalidInput(f"{what} must be the one ZIP of its files, got other bytes beside them")
    return files


def check_members(members: Sequence[zipfile.ZipInfo], size: int, what: str) -> None:
    """Check what an archive of ``size`` bytes says of its members; ``what`` is how errors call it.

    Raises:
        InvalidInput: a member that no archive of ours has.
    """
    for one in members:
        _check_member(one, what)
    if sum(one.file_size for one in members) > size:
        raise InvalidInput(f"{what}'s files must be no larger than its {size} bytes, got more")
    _check_names([one.filename for one in members], what)


@contextlib.contextmanager
def in_words(name: str, what: str) -> Iterator[None]:
    """Say in a sentence of ours what zipfile finds wrong with the file ``name``."""
    try:
        yield
    except InvalidInput:
        raise
    # ValueError: a name in no encoding, a place before the file's beginning.
    except (zipfile.BadZipFile, NotImplementedError, EOFError, struct.error, ValueError) as error:
        raise InvalidInput(f"{name} must be a whole {what}, got: {error}") from error
    except OSError as error:
        raise InvalidInput(f"{name} must be readable, got: {error.strerror}") from error


def _check_member(one: zipfile.ZipInfo, what: str) -> None:
    name = one.filename
    if not is_plain(name):
        raise InvalidInput(f"name in a {what} must be a plain relative path, got {name[:80]!r}")
    is_file = stat.S_IFMT(one.external_attr >> 16) in (0, stat.S_IFREG)
    is_stored = one.compress_type == zipfile.ZIP_STORED
    if not is_file or not is_stored or one.flag_bits & 1:
        raise InvalidInput(
            f"{name} must be a plain file, neither packed nor encrypted, got another"
        )
    if one.file_size != one.compress_size:
        raise InvalidInput(f"{name} must have one size, got two")


def _check_names(names: list[str], what: str) -> None:
    folded = [name.casefold() for name in names]
    if len(set(folded)) != len(folded):
        raise InvalidInput(f"names in a {what} must differ, got one twice")
    folders = {str(folder) for name in folded for folder in PurePosixPath(name).parents}
    if twice := folders & set(folded):
        raise InvalidInput(f"{min(twice)} must be a file or a folder, got both")


def _require_small_directory(data: bytes, what: str) -> None:
    """Count members before zipfile makes an object of each."""
    end = data[-_END.size :]
    if len(end) != _END.size or end[:4] != b"PK\x05\x06":
        raise InvalidInput(f"{what} must be a ZIP without a comment, got another end")
    _, _, _, _, count, size, offset, _ = _END.unpack(end)
    is_whole = offset + size + _END.size == len(data)
    if not is_whole or count > MOST_MEMBERS or data.count(b"PK\x01\x02", offset) != count:
        raise InvalidInput(f"{what} must hold at most {MOST_MEMBERS} files, got another directory")
