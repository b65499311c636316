"""Files that must be whole or absent: written aside, made durable, then renamed into place.

The order (write, fsync, rename, fsync of the folder) is what makes a rename survive a power cut;
without the last step the name itself may be lost.

Not covered: file systems that do not honour fsync; another process that ignores ``locked``.
"""

import contextlib
import errno
import fcntl
import os
import secrets
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from common.errors import InvalidInput, StorageFailed

_WORDS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EIO: "the disk reports an error",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "permission is denied",
    errno.EPERM: "permission is denied",
    errno.ENOENT: "the folder is missing",
    errno.ENOTDIR: "a part of the path is no folder",
    errno.EISDIR: "a folder is in the way",
}


def write_file(path: Path, data: bytes, *, mode: int = 0o600, overwrite: bool = True) -> None:
    """Put ``data`` at ``path``, whole and durable, or leave what was there.

    Args:
        path: where; its folder exists.
        data: the whole content.
        mode: permission bits, whatever the process's umask.
        overwrite: whether an existing file may be replaced.

    Raises:
        InvalidInput: the file exists and ``overwrite`` is false, or ``path`` names no file.
        StorageFailed: the disk is full, or the like.
    """
    if path.name in ("", ".."):
        raise InvalidInput(f"{str(path)!r} must be a file's name, got a folder's")
    aside = path.with_name(f".{path.name[:100]}.{secrets.token_hex(8)}.tmp")
    with _in_words(path):
        try:
            _write_new(aside, data, mode)
            if overwrite:
                aside.replace(path)
            else:
                os.link(aside, path)  # unlike rename, refuses a name that is taken
        except FileExistsError as error:
            raise InvalidInput(f"{path} must not exist yet, got a file there") from error
        finally:
            aside.unlink(missing_ok=True)
        sync_folder(path.parent)


def make_private(path: Path) -> None:
    """Make an empty file for its owner alone, before a library makes it under the umask.

    A file that is there keeps its mode: it is its owner's choice.

    Raises:
        StorageFailed: it cannot be made.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    with _in_words(path), contextlib.suppress(FileExistsError):
        os.close(os.open(path, flags, 0o600))


def exists(path: Path) -> bool:
    """Whether anything has the name ``path``.

    Raises:
        StorageFailed: the folder cannot be looked into.
    """
    with _in_words(path):
        return path.exists()


def make_folder(path: Path) -> None:
    """Make ``path`` and the missing folders above it, mode 0700; what exists keeps its mode.

    Raises:
        StorageFailed: it cannot be made.
    """
    with _in_words(path):
        missing = [folder for folder in (path, *path.parents) if not folder.exists()]
        for folder in reversed(missing):
            folder.mkdir(mode=0o700, exist_ok=True)
            sync_folder(folder.parent)
        if not path.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, "")


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable.

    Raises:
        StorageFailed: the disk reports an error.
    """
    with _in_words(path):
        folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def read_file(path: Path, *, max_bytes: int) -> bytes:
    """The whole content of a plain file of at most ``max_bytes``.

    A device, a pipe and a folder are refused without being read.

    Raises:
        InvalidInput: missing, unreadable, not a plain file, or too large.
        StorageFailed: the disk reports an error.
    """
    with _opened(path) as file:
        return _read(file, path, max_bytes)


def read_private(path: Path, *, max_bytes: int) -> bytes:
    """Like ``read_file``, for a file that its owner alone may read.

    Raises:
        InvalidInput: as ``read_file``; also another owner, or a mode beyond 0600.
        StorageFailed: the disk reports an error.
    """
    with _opened(path) as file:
        status = os.fstat(file)
        name = f"{path.parent.name}/{path.name}"
        mode = stat.S_IMODE(status.st_mode)
        if mode & 0o077:
            raise InvalidInput(
                f"{name} must be readable by its owner only (mode 0600), got {mode:04o}"
            )
        if status.st_uid != os.geteuid():
            raise InvalidInput(
                f"{name} must belong to the user who runs this (uid {os.geteuid()}), "
                f"got uid {status.st_uid}"
            )
        return _read(file, path, max_bytes)


@contextlib.contextmanager
def as_path(data: bytes) -> Iterator[str]:
    """A path to ``data`` for a library that wants one; in memory where the system can."""
    if hasattr(os, "memfd_create"):
        with open(os.memfd_create("veiltune"), "w+b") as file:
            file.write(data)
            file.flush()
            yield f"/proc/self/fd/{file.fileno()}"
    else:
        with tempfile.NamedTemporaryFile() as file:  # mode 0600
            file.write(data)
            file.flush()
            yield file.name


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on the file ``path`` (made if absent) across processes.

    Raises:
        StorageFailed: the lock file cannot be made.
    """
    with _in_words(path):
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        with _in_words(path):
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _write_new(path: Path, data: bytes, mode: int) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    file = os.open(path, flags, 0o600)
    try:
        os.fchmod(file, mode)
        view = memoryview(data)
        while view:
            view = view[os.write(file, view) :]
        os.fsync(file)
    finally:
        os.close(file)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    """Open a plain file; ``O_NONBLOCK`` so that a pipe without a writer does not hang us."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        why = os.strerror(error.errno or 0) if isinstance(error, OSError) else "a NUL in its name"
        raise InvalidInput(f"{str(path)!r} must be a readable file, got: {why}") from error
    try:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise InvalidInput(f"{str(path)!r} must be a plain file, got another kind")
        yield file
    finally:
        os.close(file)


def _read(file: int, path: Path, max_bytes: int) -> bytes:
    size = os.fstat(file).st_size
    data = bytearray()
    with _in_words(path):
        # One byte more than allowed, so that a file which grows meanwhile is noticed as well.
        while len(data) <= max_bytes and (block := os.read(file, max_bytes + 1 - len(data))):
            data += block
    if len(data) > max_bytes:
        raise InvalidInput(f"{path.name} must be at most {max_bytes} bytes, got {size}")
    return bytes(data)


@contextlib.contextmanager
def _in_words(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        why = _WORDS.get(error.errno or 0) or os.strerror(error.errno or 0)
        raise StorageFailed(f"{str(path)!r} must be within reach, but {why}") from error
