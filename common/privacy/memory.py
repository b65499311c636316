"""How many rows of gradients fit in memory, from what the machine says is free."""

from pathlib import Path

import psutil
import torch

_SHARE = 0.25
"""Of what is free; the rest is for activations, which no formula here foresees."""

_CGROUPS = Path("/sys/fs/cgroup")


def rows_within_memory(
    size: int, device: torch.device | str, *, share: float = _SHARE, itemsize: int = 4
) -> int:
    """How many rows of ``size`` numbers fit the memory budget, at least 1.

    Args:
        size: P, numbers in a row.
        device: where the rows will lie.
        share: of the memory that is free now, in (0, 1].
        itemsize: bytes a number.
    """
    return max(1, int(share * free_bytes(device)) // max(1, size * itemsize))


def free_bytes(device: torch.device | str) -> int:
    """Bytes that a process may still take on ``device``."""
    device = torch.device(device)
    if device.type == "cuda":
        # What torch has reserved and does not use is free to us, though not to the driver.
        idle = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + idle
    free = int(psutil.virtual_memory().available)
    left = _cgroup_bytes(Path("/proc/self/cgroup"), _CGROUPS)
    return free if left is None else min(free, left)


def _cgroup_bytes(membership: Path, mount: Path) -> int | None:
    """Least that any memory cgroup of this process has left (v1 or v2); none if unlimited."""
    if not membership.is_file():
        return None
    left = []
    for line in membership.read_text("ascii").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        top, v1 = mount / controllers, controllers == "memory"
        names = ("limit_in_bytes", "usage_in_bytes") if v1 else ("max", "current")
        inner = top / path.strip("/")
        for folder in (inner, *inner.parents):
            if not folder.is_relative_to(top):
                break
            limit, used = (_number(folder / f"memory.{name}") for name in names)
            if limit is not None and used is not None:
                left.append(max(0, limit - used + _reclaimable(folder, "total_" if v1 else "")))
    return min(left, default=None)


def _number(path: Path) -> int | None:
    text = path.read_text("ascii").strip() if path.is_file() else "max"
    return int(text) if text.isdigit() else None


def _reclaimable(folder: Path, prefix: str) -> int:
    """Cached file pages, which the kernel gives up before it refuses memory."""
    path, key = folder / "memory.stat", f"{prefix}inactive_file"
    if not path.is_file():
        return 0
    for line in path.read_text("ascii").splitlines():
        name, _, value = line.partition(" ")
        if name == key:
            return int(value)
    return 0
