"""What trains: the device asked for, and memory. A GPU that fails cannot be planted here."""

from collections.abc import Callable
from pathlib import Path

import pytest

from client.config import load_home
from client.devicecheck import memory, no_cuda
from common.diagnosis import Finding

Make = Callable[..., Path]
Look = Callable[..., dict[str, Finding]]


def asking(whole: Make, device: str) -> Path:
    return whole(runtime={"device": device})


def test_a_gpu_that_is_asked_for_and_not_there_is_named(whole: Make, look: Look) -> None:
    import torch

    if torch.version.cuda is not None:
        pytest.skip("this torch may find a GPU")
    assert look(asking(whole, "cpu"), "device")["device"].found == "cpu, as site.toml says"
    auto = look(asking(whole, "auto"), "device")["device"]
    assert (auto.mark, auto.found) == ("ok", "auto takes the CPU: torch is built without CUDA")
    found = look(asking(whole, "cuda"), "device")["device"]
    assert found.mark == "fault"
    assert found.found == "site.toml asks for cuda, and torch is built without CUDA"
    assert "built with CUDA" in found.advice


# As torch 2.13 says it, c10/cuda/CUDAFunctions.cpp.
TOO_OLD = (
    "CUDA initialization: The NVIDIA driver on your system is too old (found version 11040). "
    "Please update your GPU driver"
)


@pytest.mark.parametrize(
    ("built", "said", "has_driver", "words", "advice"),
    [
        (None, [], True, "built without CUDA", "built with CUDA"),
        ("13.0", [TOO_OLD], True, "driver is too old for CUDA 13.0", "update the NVIDIA driver"),
        ("13.0", ["no NVIDIA driver"], False, "no NVIDIA driver is loaded", "install"),
        ("13.0", [], True, "no GPU is visible", "CUDA_VISIBLE_DEVICES"),
    ],
)
def test_why_there_is_no_gpu(
    built: str | None, said: list[str], has_driver: bool, words: str, advice: str
) -> None:
    found = no_cuda(built, said, has_driver=has_driver)
    assert words in found[0]
    assert advice in found[1]


def test_a_job_larger_than_memory_is_named(whole: Make) -> None:
    home = load_home(whole(), "A")
    (found,) = memory(home, [], 1e6)
    assert found.mark == "fault"
    assert "a job needs 1000000.0 GiB as measured" in found.found
    assert "more memory" in found.advice
    (found,) = memory(home, [], 0.001)
    assert found.mark == "ok"
    generous = load_home(whole(policy={"max_memory_gb": 9e5}), "A")
    (found,) = memory(generous, [], 0.001)
    assert found.mark == "warning"
    assert "max_memory_gb" in found.advice
