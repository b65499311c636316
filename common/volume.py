"""What a home lies on: space, inodes, and a file system whose locks and syncs can be believed.

Not covered: quotas; whether a disk honours fsync; file systems of other systems than Linux.
"""

import ctypes
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from common.diagnosis import Finding, fault, ok, unchecked, warning

GIB = 2**30
_LITTLE_BYTES, _NO_BYTES = GIB, 100 * 2**20
_FEW_INODES, _NO_INODES = 10_000, 200
_STATFS_BYTES = 256  # struct statfs is smaller everywhere; its first word is the magic

# statfs(2), f_type; /usr/include/linux/magic.h and the file systems' own headers.
_NETWORK = {
    0x6969: "NFS",
    0x517B: "SMB",
    0xFE534D42: "SMB",
    0xFF534D42: "CIFS",
    0x5346414F: "AFS",
    0x6B414653: "AFS",
    0x00C36400: "Ceph",
    0x01021997: "9P",
    0x0BD00BD0: "Lustre",
    0x47504653: "GPFS",
    0x19830326: "BeeGFS",
    0x73757245: "Coda",
}
_FUSE = 0x65735546
_FLEETING = {0x01021994: "tmpfs", 0x858458F6: "ramfs", 0x794C7630: "a container's overlay"}


def findings(home: Path) -> Iterator[Finding]:
    """Space, inodes and kind of file system under ``home``.

    Raises:
        OSError: the folder is not there.
    """
    yield space(home)
    yield inodes(home)
    yield file_system(magic(home))


def space(home: Path) -> Finding:
    """Bytes that this user may still write."""
    found = os.statvfs(home)
    free = found.f_bavail * found.f_frsize
    words = f"{free / GIB:.1f} GiB free"
    advice = "free space on that disk: a full one ends rounds that are charged already"
    if free < _NO_BYTES:
        return fault("disk space", f"{free / 2**20:.0f} MiB free", advice)
    return warning("disk space", words, advice) if free < _LITTLE_BYTES else ok("disk space", words)


def inodes(home: Path) -> Finding:
    """Files that this user may still make; some file systems do not count them."""
    found = os.statvfs(home)
    if not found.f_files:
        return ok("inodes", "this file system sets no number of files")
    words, advice = f"{found.f_favail:,} free", "remove files from that disk: it can hold few more"
    if found.f_favail < _NO_INODES:
        return fault("inodes", words, advice)
    return warning("inodes", words, advice) if found.f_favail < _FEW_INODES else ok("inodes", words)


def file_system(kind: int | None) -> Finding:
    """Judge a file system by its magic number."""
    name = "file system"
    move = "move the home to a local disk"
    if kind is None:
        return unchecked(name, "this system does not say", "see that the home is on a local disk")
    if kind in _NETWORK:
        words = f"{_NETWORK[kind]}, a network file system, where locks and syncs may lie"
        return fault(name, words, f"{move}: a ledger there may lose or double a charge")
    if kind == _FUSE:
        words = "FUSE: whether locks and syncs hold depends on the program behind it"
        return warning(name, words, f"{move}, unless that program is a local disk's")
    if kind in _FLEETING:
        words = f"{_FLEETING[kind]}: what is written there goes with the machine or container"
        return warning(name, words, f"{move} or a volume that stays")
    return ok(name, f"local, as far as the kernel says (magic {kind:#x})")


def magic(path: Path) -> int | None:
    """The magic number of the file system that ``path`` is on; ``None`` where nobody says.

    Raises:
        OSError: nothing is there.
    """
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None, use_errno=True)
    buffer = ctypes.create_string_buffer(_STATFS_BYTES)
    if libc.statfs(os.fsencode(path), buffer) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(path))
    return ctypes.c_long.from_buffer(buffer).value & 0xFFFFFFFF
