import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel
from structlog.testing import capture_logs
from transformers import AutoModelForSequenceClassification

from common.adapter import (
    AdapterTable,
    LoadedAdapter,
    TensorSpec,
    load_adapter,
    pick_device,
    read_vector,
    vector_sha256,
)
from common.errors import InvalidInput, UpdateRejected
from common.job import Job
from common.layout import frozen_sha256
from common.privacy.persample import trainable
from common.saved import save_adapter

MakeJob = Callable[..., Job]


def load(job: Job) -> LoadedAdapter:
    return load_adapter(job, Path(job.model.base), "cpu")


def test_the_table_lists_every_trainable_in_order_and_nothing_else(job: MakeJob) -> None:
    adapter = load(job())
    names = [tensor.name for tensor in adapter.table.tensors]
    assert names == sorted(names)
    assert len(names) == 2 * 2 + 2  # B of query and value in two layers; weight and bias
    assert all("lora_B" in name or "classifier" in name for name in names)
    assert adapter.table.size == 2 * 2 * 32 * 2 + 3 * 32 + 3
    assert adapter.initial.shape == (adapter.table.size,)
    assert {p.dtype for p in trainable(adapter.model).values()} == {torch.float32}


def test_with_lora_a_is_trained_too(job: MakeJob) -> None:
    names = [t.name for t in load(job(adapter={"method": "fedavg"})).table.tensors]
    assert sum("lora_A" in name for name in names) == 4


def test_the_adapter_starts_as_no_change_to_the_base(job: MakeJob) -> None:
    adapter = load(job())
    by_name = dict(trainable(adapter.model))
    adapter.write(adapter.initial)
    assert all(not p.any() for name, p in by_name.items() if "lora_B" in name)
    frozen = [p for name, p in adapter.model.named_parameters() if "lora_A" in name]
    assert frozen
    assert all(p.abs().max() > 0 and not p.requires_grad for p in frozen)


def test_the_public_start_is_the_same_each_time_and_follows_the_seed(job: MakeJob) -> None:
    first = load(job())
    kept = first.initial.copy(), first.table.sha256
    other = load(job(adapter={"seed": 18}))
    assert vector_sha256(other.initial) != vector_sha256(kept[0])
    assert other.table.sha256 != kept[1]  # A differs, which no vector shows
    again = load(job())
    assert vector_sha256(again.initial) == vector_sha256(kept[0])
    assert again.table.sha256 == kept[1]


def test_a_table_names_what_it_holds() -> None:
    table = AdapterTable((TensorSpec("b", (3, 2)), TensorSpec("c", (5,))), "aa")
    assert table.size == 11
    assert json.loads(table.to_json()) == {
        "frozen_sha256": "aa",
        "tensors": [
            {"name": "b", "shape": [3, 2], "dtype": "float32"},
            {"name": "c", "shape": [5], "dtype": "float32"},
        ],
    }
    others = [
        AdapterTable(table.tensors, "ab"),
        AdapterTable(table.tensors[::-1], "aa"),
        AdapterTable((TensorSpec("b", (2, 3)), TensorSpec("c", (5,))), "aa"),
    ]
    assert len({t.sha256 for t in (table, *others)}) == 4


@settings(max_examples=10)
@given(seed=st.integers(0, 2**32 - 1))
def test_what_is_written_is_read_back(job: MakeJob, seed: int) -> None:
    adapter = load(job())
    vector = np.random.default_rng(seed).normal(size=adapter.table.size).astype(np.float32)
    adapter.write(vector)
    assert read_vector(adapter.model).tobytes() == vector.tobytes()
    assert frozen_sha256(adapter.model, adapter.table.tensors) == adapter.table.frozen_sha256


def test_each_number_goes_to_its_own_place(job: MakeJob) -> None:
    adapter = load(job())
    vector = np.arange(adapter.table.size, dtype=np.float32)
    adapter.write(vector)
    offset = 0
    for spec in adapter.table.tensors:
        held = dict(adapter.model.named_parameters())[spec.name].detach().numpy()
        assert held.shape == spec.shape
        assert held.ravel().tolist() == list(range(offset, offset + spec.size))
        offset += spec.size


def test_the_written_vector_is_a_copy(job: MakeJob) -> None:
    adapter = load(job())
    vector = adapter.initial.copy()
    adapter.write(vector)
    vector += 1
    assert read_vector(adapter.model).tobytes() == adapter.initial.tobytes()


@pytest.mark.parametrize("change", [-1, 1])
def test_a_vector_of_another_length_is_refused(job: MakeJob, change: int) -> None:
    adapter = load(job())
    with pytest.raises(UpdateRejected, match="must have shape"):
        adapter.write(np.zeros(adapter.table.size + change, dtype=np.float32))


def test_a_saved_adapter_loads_with_peft_and_predicts_the_same(
    job: MakeJob, tmp_path: Path
) -> None:
    adapter = load(job())
    rng = np.random.default_rng(4)
    state = rng.normal(0, 0.2, adapter.table.size).astype(np.float32)
    adapter.write(state)
    inputs = adapter.tokenizer(["w1 w120 w250", "w7"], padding=True, return_tensors="pt")
    with torch.inference_mode():
        ours = adapter.model.eval()(**inputs).logits
    save_adapter(adapter, state, tmp_path / "out", job().model.base)
    torch.manual_seed(99)
    base = AutoModelForSequenceClassification.from_pretrained(job().model.base, num_labels=3)
    loaded = PeftModel.from_pretrained(base, str(tmp_path / "out")).eval()
    with torch.inference_mode():
        theirs = loaded(**inputs).logits
    assert torch.allclose(ours, theirs, atol=1e-6)
    assert ours.abs().max() > 0.1
    assert (tmp_path / "out" / "tokenizer.json").is_file()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"targets": ["quarry"]}, "adapter.targets must name modules of the base, got 'quarry'"),
        ({"targets": ["word_embeddings"]}, "adapter.targets must not be an embedding"),
        (
            {"targets": ["query", "attention"]},
            "adapter.targets must name linear layers, got 'attention' which is a BertAttention",
        ),
        ({"targets": ["LayerNorm"]}, "got 'LayerNorm' which is a LayerNorm"),
        ({"head": ["position_embeddings"]}, "adapter.head must not be an embedding"),
        ({"head": ["scorer"]}, "adapter.head must name modules of the base"),
    ],
)
def test_what_breaks_per_sample_gradients_is_refused_with_a_reason(
    job: MakeJob, change: dict[str, Any], says: str
) -> None:
    with pytest.raises(InvalidInput) as caught:
        load(job(adapter=change))
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("content", "error"),
    [
        ('{"model_type": "clip"}', "ValueError"),  # has no form for this task
        ('{"model_type": "bert"}', "OSError"),  # and no weights
        ('{"model_type": "none such"}', "ValueError"),
    ],
)
def test_a_base_that_does_not_load_is_the_manifests_mistake_without_this_machines_folders(
    job: MakeJob, tmp_path: Path, content: str, error: str
) -> None:
    (tmp_path / "config.json").write_text(content)
    with capture_logs() as events, pytest.raises(InvalidInput) as caught:
        load_adapter(job(), tmp_path, "cpu")
    assert str(caught.value) == f"model.base must load for the task seq-cls, got a {error}"
    assert [(e["log_level"], e["error"]) for e in events] == [("warning", error)]
    assert events[0]["words"]


def test_an_adapter_that_its_library_does_not_take_is_the_manifests_mistake(job: MakeJob) -> None:
    with pytest.raises(InvalidInput, match="adapter must fit the base, got a "):
        load(job(adapter={"targets": ["classifier"], "head": ["classifier"]}))


@pytest.mark.skipif(torch.cuda.is_available(), reason="a machine without CUDA")
def test_cuda_that_is_absent_is_refused() -> None:
    with pytest.raises(InvalidInput, match=r"runtime\.device must be present"):
        pick_device("cuda")
    assert pick_device("auto").type == "cpu"
