"""A systemd unit for a process of ours, with as little reach as it can work with.

It is printed by the program that it starts, so that its paths are those of this installation and
this home. The home is the one place that it may write to. What lies below /home or /root stays
hidden but for what is named here.

Two rules are missing on purpose, each tried. ``MemoryDenyWriteExecute`` stops torch, whose oneDNN
compiles its kernels as it goes ("could not create a primitive"). ``ProcSubset=pid`` hides
/proc/meminfo, by which a site measures whether a job fits. Keys are read from the home, mode 0600,
not by ``LoadCredential``: they are renewed there, and other commands than the unit's need them.

Not covered: cgroup limits of memory and CPU, which belong to the machine (``systemctl edit``).
"""

import os
import pwd
import shutil
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from common.errors import InvalidInput

_PLACE = Path("/etc/systemd/system")
_OWN = (Path("/tmp"), Path("/var/tmp"))
_HIDDEN = (Path("/home"), Path("/root"), Path("/run/user"))

_RULES = """\
UMask=0077
NoNewPrivileges=yes
CapabilityBoundingSet=
AmbientCapabilities=
ProtectSystem=strict
PrivateTmp=yes
ProtectProc=invisible
ProtectClock=yes
ProtectHostname=yes
ProtectControlGroups=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
LockPersonality=yes
RemoveIPC=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallFilter=~@privileged
SystemCallErrorNumber=EPERM
"""
_DEVICES = "PrivateDevices=yes\n"
_GPU_DEVICES = """\
DevicePolicy=closed
DeviceAllow=char-nvidia rw
DeviceAllow=char-nvidia-frontend rw
DeviceAllow=char-nvidia-uvm rw
DeviceAllow=char-nvidia-caps rw
"""


def unit(
    name: str,
    command: Sequence[str],
    home: Path,
    *,
    user: str = "",
    reads: Iterable[Path] = (),
    has_gpu: bool | None = None,
) -> str:
    """The unit's text.

    Args:
        name: what it is, in words.
        command: the program and its arguments.
        home: the one folder that it writes to; it exists.
        user: who it runs as; by default the home's owner.
        reads: what else it must see that may be below /home.
        has_gpu: whether it uses an NVIDIA GPU; ``None`` for whether there is one.

    Raises:
        InvalidInput: no home, no such user, or a path that no unit can name.
    """
    if not home.is_dir():
        raise InvalidInput(f"home must be a folder, got {str(home)!r}")
    if any(home.is_relative_to(place) for place in _OWN):
        raise InvalidInput(
            f"home must not lie below /tmp, of which a service has its own, got {home}"
        )
    prefixes = (Path(sys.prefix), Path(sys.base_prefix), Path(command[0]).parent)
    if has_gpu is None:
        has_gpu = Path("/dev/nvidiactl").exists()
    return (
        f"[Unit]\nDescription={_escaped(name)}\n"
        "After=network-online.target\nWants=network-online.target\n"
        "StartLimitIntervalSec=600\nStartLimitBurst=5\n\n"
        f"[Service]\nType=notify\nUser={_user(user, home)}\n"
        f"ExecStart={' '.join(_word(part) for part in command)}\n"
        f"Environment={_quoted(f'XDG_CACHE_HOME={home}/cache')}\n"
        # 2 is what a person has to mend: another start would find the same.
        "Restart=on-failure\nRestartSec=10\nRestartPreventExitStatus=2\n"
        "TimeoutStartSec=120\nTimeoutStopSec=40\n"
        f"ReadWritePaths={_quoted(str(home))}\n"
        f"{_sight(home, (*prefixes, *reads))}{_RULES}{_GPU_DEVICES if has_gpu else _DEVICES}\n"
        "[Install]\nWantedBy=multi-user.target\n"
    )


def heading(name: str, written_by: str) -> str:
    """The comment on top of the unit ``name``: where it comes from and where it goes."""
    return (
        f"# Written by: {_escaped(written_by)}\n"
        f"# Belongs in {_PLACE}/{name}.service; then: systemctl enable --now {name}\n"
    )


def program(name: str) -> str:
    """The path of the console script ``name`` that belongs to this Python.

    Raises:
        InvalidInput: it is not installed.
    """
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.is_file() else shutil.which(name)
    if found is None:
        raise InvalidInput(f"{name} must be installed beside {sys.executable}, got none there")
    return os.path.abspath(found)


def _user(user: str, home: Path) -> str:
    try:
        return (pwd.getpwnam(user) if user else pwd.getpwuid(home.stat().st_uid)).pw_name
    except KeyError as error:
        raise InvalidInput(
            f"user must be one of this machine, got {user or home.stat().st_uid!r}"
        ) from error


def _sight(home: Path, reads: Iterable[Path]) -> str:
    """Hide people's folders, but for the home and what has to be read."""
    needed = {path.absolute() for path in reads}
    hidden = sorted({str(path) for path in needed if _is_hidden(path)})
    if not hidden and not _is_hidden(home):
        return "ProtectHome=yes\n"
    lines = ["ProtectHome=tmpfs"]
    lines += [f"BindReadOnlyPaths={_bound(path)}" for path in hidden if not _is_in(path, home)]
    lines += [f"BindPaths={_bound(str(home))}"] if _is_hidden(home) else []
    return "\n".join(lines) + "\n"


def _is_in(path: str, home: Path) -> bool:
    return Path(path).is_relative_to(home)


def _bound(path: str) -> str:
    if ":" in path:
        raise InvalidInput(f"a path that a service is to see must have no colon, got {path!r}")
    return _quoted(path)


def _is_hidden(path: Path) -> bool:
    return any(path.is_relative_to(place) for place in _HIDDEN)


def _escaped(text: str) -> str:
    r"""Text as a unit has it.

    >>> _escaped("50%")
    '50%%'
    """
    if not text.isprintable():
        raise InvalidInput(f"a path in a unit must be printable, got {text[:80]!r}")
    return text.replace("%", "%%")


def _quoted(text: str) -> str:
    r"""One word of a setting, quoted where it has to be.

    >>> _quoted('/srv/a "b"')
    '"/srv/a \\"b\\""'
    """
    text = _escaped(text).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"' if any(c in " \t\"'\\;" for c in text) else text


def _word(text: str) -> str:
    """One word of a command line, where a dollar means a variable."""
    return _quoted(text).replace("$", "$$")
