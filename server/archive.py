"""A backup's file: a ZIP without compression whose manifest names every file by its sha256.

Who reads one trusts nothing in it. Names are plain relative paths of a narrow alphabet, no member
is compressed, linked, encrypted or there twice, and all of them together are no larger than the
file, so nothing grows and nothing lands outside of the folder that it is unpacked into.

Not covered: somebody who replaces a backup by another whole one. It holds private keys and is as
well kept as the home that it is of.
"""

import contextlib
import hashlib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, BinaryIO, Literal

from pydantic import Field

from common.config import Section, Sha256, parse
from common.errors import InvalidInput
from common.files import make_folder, new_file
from common.stored_zip import check_members, in_words, is_plain, member
from common.strict_json import parse_json

MANIFEST = "manifest.json"
_MAX_MANIFEST_BYTES = 16 * 1024 * 1024
_MAX_FILES = 100_000
_BLOCK_BYTES = 1 << 20


class Kept(Section):
    """One file of a backup."""

    sha256: Sha256
    bytes: int = Field(ge=0)


class Manifest(Section):
    """What a backup is of; ``root_sha256`` is the federation's root certificate."""

    format: Literal["veiltune-server-backup"] = "veiltune-server-backup"
    version: Literal[1] = 1
    software: str = Field(max_length=100)
    made_at: str = Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ\z")
    root_sha256: Sha256
    files: dict[str, Kept] = Field(max_length=_MAX_FILES)


def may_be_kept(name: str) -> bool:
    """Whether a file of this name, relative to its home, can be in a backup."""
    return is_plain(name) and name != MANIFEST


def add(archive: zipfile.ZipFile, name: str, path: Path) -> Kept:
    """Copy a file into an archive that is being written; its hash is of the bytes that went in.

    Raises:
        InvalidInput: it cannot be opened.
    """
    try:
        source = path.open("rb")
    except OSError as error:
        raise InvalidInput(f"{name} must be readable, got: {error.strerror}") from error
    with source, archive.open(member(name), "w", force_zip64=True) as target:
        digest, size = hashlib.sha256(), 0
        while block := source.read(_BLOCK_BYTES):
            digest.update(block)
            size += len(block)
            target.write(block)
    return Kept(sha256=digest.hexdigest(), bytes=size)


def finish(archive: zipfile.ZipFile, manifest: Manifest) -> None:
    """Write the manifest, the last member."""
    archive.writestr(member(MANIFEST), manifest.model_dump_json(indent=1))


@contextlib.contextmanager
def opened(path: Path) -> Iterator[tuple[zipfile.ZipFile, Manifest]]:
    """A backup whose names and sizes are as they must be; contents are checked when unpacked.

    Raises:
        InvalidInput: it is no backup of ours, in whatever way.
    """
    if not path.is_file():
        raise InvalidInput(f"backup must be a plain file, got {str(path)!r}")
    with in_words(path.name, "backup"), zipfile.ZipFile(path) as archive:
        yield archive, _checked(archive, path.stat().st_size)


def unpack(archive: zipfile.ZipFile, manifest: Manifest, folder: Path) -> None:
    """Write every file below ``folder``, mode 0600.

    Raises:
        InvalidInput: a file is not the one that the manifest names.
        StorageFailed: the disk is full, or the like.
    """
    for name, kept in manifest.files.items():
        target = folder / name
        make_folder(target.parent)
        with archive.open(name) as source, new_file(target) as file:
            found = _copied(source, file, kept.bytes)
            if found != kept.sha256:
                raise InvalidInput(f"{name} must be as it was backed up, got other bytes")


def _copied(source: IO[bytes], file: BinaryIO, size: int) -> str:
    """Copy at most ``size`` bytes; their sha256, or nothing if there are more or fewer."""
    digest, left = hashlib.sha256(), size
    while block := source.read(min(_BLOCK_BYTES, left + 1)):
        left -= len(block)
        if left < 0:
            return ""
        digest.update(block)
        file.write(block)
    return digest.hexdigest() if left == 0 else ""


def _checked(archive: zipfile.ZipFile, size: int) -> Manifest:
    members = archive.infolist()
    if len(members) > _MAX_FILES + 1:
        raise InvalidInput(f"backup must hold at most {_MAX_FILES} files, got {len(members) - 1}")
    check_members(members, size, "backup")
    names = [one.filename for one in members]
    if MANIFEST not in names or archive.getinfo(MANIFEST).file_size > _MAX_MANIFEST_BYTES:
        raise InvalidInput(f"backup must have a {MANIFEST}, got none or too large a one")
    manifest = _manifest(archive.read(MANIFEST))
    if set(names) != {*manifest.files, MANIFEST}:
        raise InvalidInput("backup must hold the files of its manifest, got others or fewer")
    return manifest


def _manifest(data: bytes) -> Manifest:
    try:
        content = parse_json(data)
    except ValueError as error:
        raise InvalidInput(f"{MANIFEST} must be JSON, got something else") from error
    if not isinstance(content, dict):
        raise InvalidInput(f"{MANIFEST} must be a JSON object, got another value")
    return parse(Manifest, content, MANIFEST)
