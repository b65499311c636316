"""An adapter file against the rounds: what peft wrote, by the hash of its vector."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from client.audit_cli import main
from common.adapter import load_adapter, vector_sha256
from common.audit.adapter_file import check_adapter, read_tensors, vector_of
from common.audit.claims import judged
from common.audit.evidence import Evidence
from common.errors import Refusal
from common.job import Job
from common.saved import WEIGHTS, save_adapter
from tests.planted_evidence import VECTOR
from tests.story import digest, make_job, told, weights

MakeJob = Callable[..., Job]


def status(data: bytes | None, evidence: Evidence) -> str:
    return judged("adapter", lambda: check_adapter(data, evidence)).status


@pytest.mark.parametrize(
    "adapter",
    [
        {"method": "ffa"},
        {"method": "ffa", "init": "orthonormal"},
        {"method": "ffa", "init": "svd"},
        {"method": "fedavg"},
        {"method": "fedsvd"},
        {"method": "rolora"},
        {"method": "flexlora"},
        {"method": "flexlora", "ranks": {"A": 1}},
        {"method": "head"},
        {"method": "head", "init": "orthonormal"},
    ],
    ids=lambda chosen: "-".join(str(value) for value in chosen.values()),
)
def test_what_peft_wrote_has_the_rounds_own_vector(
    adapter: dict[str, Any], job: MakeJob, tmp_path: Path
) -> None:
    """The oracle is the vector that was saved, which rounds name by ``vector_sha256``."""
    made = job(adapter=adapter)
    loaded = load_adapter(made, Path(made.model.base), "cpu")
    moved = np.random.default_rng(5).normal(size=loaded.table.size).astype(np.float32)
    state = loaded.initial + moved
    save_adapter(loaded, state, tmp_path, "base")
    tensors = read_tensors((tmp_path / WEIGHTS).read_bytes())
    assert vector_sha256(vector_of(tensors, made)) == vector_sha256(state)


def test_a_factor_that_no_site_trains_is_the_public_start() -> None:
    story = told()
    story.make(VECTOR, weights())
    assert status(weights(), story.evidence()) == "pass"
    tensors = dict(safetensors.numpy.load(weights()))
    frozen = next(name for name in tensors if "lora_A" in name)
    tensors[frozen] = tensors[frozen] * 2
    other = safetensors.numpy.save(tensors)
    story.make(VECTOR, other)  # the very numbers that travelled
    with pytest.raises(Refusal, match="must be the job's public start"):
        check_adapter(other, story.evidence())


NAME = "base_model.model.encoder.layer.0.query"


def file_with(**shapes: tuple[int, ...]) -> bytes:
    """An adapter of the story's job with other shapes of its A and B."""
    tensors = dict(safetensors.numpy.load(weights()))
    zeros = {f"{NAME}.lora_{part}.weight": np.zeros(s, np.float32) for part, s in shapes.items()}
    return safetensors.numpy.save(tensors | zeros)


@pytest.mark.parametrize("start", ["uniform", "orthonormal"])
@pytest.mark.parametrize(
    "shapes",
    [{"A": (8, 0)}, {"B": (0, 8)}, {"A": (7, 6)}, {"A": (8,)}, {"B": (4, 8, 1)}, {"B": (4, 7)}],
    ids=str,
)
@pytest.mark.filterwarnings("error")
def test_factors_of_no_adapters_shape_are_refused_in_words(
    start: str, shapes: dict[str, tuple[int, ...]]
) -> None:
    job = make_job()
    adapter = job.adapter.model_copy(update={"init": start})
    with pytest.raises(Refusal, match="must have an A of 8 rows and a B of 8 columns"):
        vector_of(read_tensors(file_with(**shapes)), job.model_copy(update={"adapter": adapter}))


@pytest.mark.filterwarnings("error")
def test_an_orthonormal_start_has_no_more_rows_than_its_matrix() -> None:
    job = make_job()
    adapter = job.adapter.model_copy(update={"init": "orthonormal"})
    with pytest.raises(Refusal, match="A of 8 rows"):
        vector_of(read_tensors(weights()), job.model_copy(update={"adapter": adapter}))


def test_with_the_head_alone_b_has_to_be_zero(job: MakeJob, tmp_path: Path) -> None:
    made = job(adapter={"method": "head"})
    loaded = load_adapter(made, Path(made.model.base), "cpu")
    save_adapter(loaded, loaded.initial, tmp_path, "base")
    tensors = dict(read_tensors((tmp_path / WEIGHTS).read_bytes()))
    name = next(name for name in tensors if "lora_B" in name)
    with pytest.raises(Refusal, match="must be the job's public start"):
        vector_of(tensors | {name: tensors[name] + np.float32(1)}, made)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"PK\x03\x04",
        b"\xff" * 64,
        (2**60).to_bytes(8, "little") + b"{}",
        safetensors.numpy.save({"base_model.model.classifier.bias": np.zeros(2)}),
        safetensors.numpy.save({"x.lora_A.weight": np.zeros((2, 2, 2), np.float32)}),
        safetensors.numpy.save({"pickle": np.zeros(2, np.float32)}),
        safetensors.numpy.save({}),
    ],
    ids=["empty", "zip", "noise", "long header", "float64", "shape", "name", "none"],
)
def test_what_is_no_adapter_of_the_job_is_refused_in_words(data: bytes) -> None:
    story = told()
    story.make(VECTOR, data)
    assert status(data, story.evidence()) == "fail"


def test_methods_whose_state_is_more_than_the_file_are_said_to_be(job: MakeJob) -> None:
    story = told()
    story.make(VECTOR, weights())
    evidence = story.evidence()
    signed = evidence.job.model_copy(update={"job": job(adapter={"method": "fedex"})})
    evidence = replace(evidence, job=signed)
    assert status(weights(), evidence) == "not checkable"
    assert status(weights(9.0), evidence) == "fail"


def test_the_option_and_its_absence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    story = told()
    story.make(VECTOR, weights())
    for name, data in {
        "e.zip": story.bundle(),
        "root.pem": story.by.root.certificate,
        "a.safetensors": weights(),
        "b.safetensors": weights(9.0),
    }.items():
        (tmp_path / name).write_bytes(data)
    command = ["verify", str(tmp_path / "e.zip"), "--root", str(tmp_path / "root.pem"), "--json"]

    def found(*options: str) -> tuple[int, str]:
        code = main([*command, *options])
        claims = json.loads(capsys.readouterr().out)["claims"]
        return code, next(c["status"] for c in claims if c["name"] == "adapter")

    assert found() == (0, "not checkable")
    assert found("--adapter", str(tmp_path / "a.safetensors")) == (0, "pass")
    assert found("--adapter", str(tmp_path / "b.safetensors")) == (1, "fail")
    assert main([*command, "--adapter", str(tmp_path / "none")]) == 2
    assert digest("file") not in capsys.readouterr().err
