"""On CUDA the same job does the same: to be run where there is a GPU (``pytest -m gpu``)."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

NO_PRIVACY: Mapping[str, Any] = {
    "mode": "none",
    "epsilon": None,
    "delta": None,
    "clip_norm": None,
}


def needs_cuda() -> None:
    import torch

    if not torch.cuda.is_available():
        pytest.skip("CUDA is not here")


@pytest.mark.gpu
def test_cuda_and_cpu_end_with_the_same_adapter(
    job: Callable[..., Any], federation: Callable[..., Any], tmp_path: Path
) -> None:
    needs_cuda()
    from safetensors.numpy import load_file

    ends = {}
    for device in ("cpu", "cuda"):
        sites = federation(
            job(privacy=NO_PRIVACY),
            folder=device,
            policy={"allow_no_privacy": True},
            runtime={"device": device},
        )
        sites.run()
        shutil.rmtree(tmp_path / "homes")  # the same job again, at sites that never saw it
        ends[device] = load_file(tmp_path / device / "out/adapter/adapter_model.safetensors")
    for name, value in ends["cpu"].items():
        assert abs(value - ends["cuda"][name]).max() < 1e-3, name


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_private_job_passes_its_self_checks_on_cuda(
    dtype: str, job: Callable[..., Any], federation: Callable[..., Any]
) -> None:
    needs_cuda()
    result = federation(job(model={"dtype": dtype}), runtime={"device": "cuda"}).run()
    assert result.private
    assert result.epsilon is not None
    assert result.epsilon <= 6.0
