"""``doctor``'s look at what trains: the device that ``site.toml`` asks for, and memory for a job.

Not covered: how fast it is; other programs that take the memory later.
"""

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil

from client.config import SiteHome
from client.modelcheck import Base
from common.diagnosis import Finding, fault, ok, unchecked, warning

DEVICE, MEMORY = "device", "memory"
GIB = 2**30
_DRIVER = Path("/proc/driver/nvidia/version")
_LEAST_GPU_BYTES = 2 * GIB
_PROCESS_BYTES = GIB // 2  # a site with the model libraries loaded, without a model


def device(home: SiteHome) -> Iterator[Finding]:
    """Whether the device that ``site.toml`` asks for can be had."""
    wanted = home.config.runtime.device
    if wanted == "cpu":
        yield ok(DEVICE, "cpu, as site.toml says")
        return
    import torch

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        is_there = torch.cuda.is_available()
    if not is_there:
        texts = [str(warning.message) for warning in said]
        why, advice = no_cuda(torch.version.cuda, texts, has_driver=_DRIVER.exists())
        yield _without_cuda(wanted, why, advice)
        return
    try:
        free, total = torch.cuda.mem_get_info()
        yield _gpu(home, torch.cuda.get_device_name(), free, total)
    except RuntimeError:  # the library's own words name addresses and environment
        yield fault(DEVICE, "the GPU is there and cannot be used", "see what nvidia-smi says")


def no_cuda(built: str | None, said: Sequence[str], *, has_driver: bool) -> tuple[str, str]:
    """Why torch finds no CUDA, and what to do.

    Args:
        built: the CUDA version that torch was built with, if with any.
        said: torch's warnings when it was asked.
        has_driver: whether NVIDIA's kernel driver is loaded.
    """
    if built is None:
        return "torch is built without CUDA", "install a torch that is built with CUDA"
    if any("driver" in text and "too old" in text for text in said):
        return f"the NVIDIA driver is too old for CUDA {built}", "update the NVIDIA driver"
    if not has_driver:
        return "no NVIDIA driver is loaded", "install the NVIDIA driver, or pass the GPU through"
    return (
        f"no GPU is visible to CUDA {built}",
        "see what nvidia-smi says, and CUDA_VISIBLE_DEVICES",
    )


def memory(home: SiteHome, bases: Sequence[Base], needed_gb: float | None) -> Iterator[Finding]:
    """Compare what this process may take with what a job needs at least.

    Args:
        home: the site's.
        bases: of this machine; the weights of the largest are the least that a job can need.
        needed_gb: GiB of a job that was measured, if one was.
    """
    from common.privacy.memory import free_bytes

    free, machine = free_bytes("cpu"), int(psutil.virtual_memory().available)
    limited = " (the cgroup's limit; the machine has more)" if free < machine else ""
    words = f"{free / GIB:.1f} GiB may be taken{limited}"
    least = max((base.weights_bytes for base in bases), default=0) + _PROCESS_BYTES
    needed = least if needed_gb is None else int(needed_gb * GIB)
    how = "at the least (--job FILE measures it)" if needed_gb is None else "as measured"
    words += f", and a job needs {needed / GIB:.1f} GiB {how}"
    if free < needed:
        yield fault(MEMORY, words, "give this process more memory, or take part in smaller jobs")
    elif (limit := home.config.policy.max_memory_gb) is not None and limit * GIB > free:
        advice = "lower max_memory_gb to what is there"
        yield warning(MEMORY, f"{words}; policy.max_memory_gb allows {limit:g}", advice)
    else:
        yield ok(MEMORY, words)


def _without_cuda(wanted: str, why: str, advice: str) -> Finding:
    if wanted == "cuda":
        return fault(DEVICE, f"site.toml asks for cuda, and {why}", advice)
    if "too old" in why:
        return warning(DEVICE, f"auto takes the CPU: {why}", advice)
    return ok(DEVICE, f"auto takes the CPU: {why}")


def _gpu(home: SiteHome, name: str, free: int, total: int) -> Finding:
    words = f"{name}, {free / GIB:.1f} of {total / GIB:.1f} GiB free"
    limit = home.config.policy.max_gpu_memory_gb
    if free < _LEAST_GPU_BYTES:
        return fault(DEVICE, words, "end what else uses the GPU (nvidia-smi lists it)")
    if limit is not None and limit * GIB > free:
        advice = "lower max_gpu_memory_gb to what is there, or free the GPU"
        return warning(DEVICE, f"{words}; policy.max_gpu_memory_gb allows {limit:g}", advice)
    return ok(DEVICE, words)


def unmeasured(why: str) -> Finding:
    """A job that was to be measured, and could not be."""
    return unchecked(MEMORY, why, "place its base under [models] in site.toml, then ask again")
