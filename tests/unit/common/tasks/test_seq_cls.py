from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score
from torch.nn import functional

from common.adapter import load_adapter
from common.data.records import Record
from common.errors import InvalidInput
from common.job import Job
from common.tasks import TASKS, task_of
from common.tasks.batches import Example, padded_length, physical_batches
from common.tasks.seq_cls import encode, measure, per_example_loss

MakeJob = Callable[..., Job]
CPU = torch.device("cpu")


def test_a_record_becomes_its_tokens_and_its_labels_index(make_job: MakeJob) -> None:
    job = make_job()
    tokenizer = load_adapter(job, Path(job.model.base), "cpu").tokenizer
    long = " ".join(["w3"] * 90)
    first, second = encode(
        tokenizer, [Record("w0 w299", "surgery"), Record(long, "cardiology")], job
    )
    assert first == Example((2, 57, 356, 3), 1, 16)
    assert (len(second.input_ids), second.label, second.padded_length) == (48, 0, 48)
    assert encode(tokenizer, [], job) == []


def test_a_label_outside_the_public_set_is_refused_without_naming_it(make_job: MakeJob) -> None:
    job = make_job()
    tokenizer = load_adapter(job, Path(job.model.base), "cpu").tokenizer
    with pytest.raises(InvalidInput, match="public set of 3, got 1 records") as caught:
        encode(tokenizer, [Record("w1", "surgery"), Record("w1 secret", "psychiatry")], job)
    assert "psychiatry" not in str(caught.value)
    assert "secret" not in str(caught.value)


@given(tokens=st.integers(0, 300), limit=st.integers(8, 128))
def test_a_padded_length_follows_from_the_record_alone(tokens: int, limit: int) -> None:
    cut = min(tokens, limit)
    padded = padded_length(cut, limit)
    assert cut <= padded <= limit
    assert padded % 16 == 0 or padded == limit
    assert padded - cut < 16 or cut == 0


lengths = st.lists(st.integers(1, 48), max_size=20)


@given(lengths, st.integers(1, 7))
def test_each_example_is_in_one_batch_at_its_own_length(tokens: list[int], size: int) -> None:
    examples = [Example((9,) * n, i, padded_length(n, 48)) for i, n in enumerate(tokens)]
    seen: dict[int, int] = {}
    for batch in physical_batches(examples, size, 0, CPU):
        assert len(batch.labels) <= size
        for ids, mask, label in zip(
            batch.input_ids, batch.attention_mask, batch.labels, strict=True
        ):
            assert int(label) not in seen
            seen[int(label)] = len(ids)
            assert int(mask.sum()) == tokens[int(label)] == int((ids == 9).sum())
    assert seen == {i: e.padded_length for i, e in enumerate(examples)}


def test_the_loss_is_each_examples_own_cross_entropy(make_job: MakeJob) -> None:
    job = make_job()
    adapter = load_adapter(job, Path(job.model.base), "cpu")
    rows = [Record(f"w{i} w{i + 9}", job.data.labels[i % 3]) for i in range(5)]
    (batch,) = physical_batches(encode(adapter.tokenizer, rows, job), 9, 0, CPU)
    with torch.inference_mode():
        losses = per_example_loss(adapter.model, batch)
        logits = adapter.model(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask
        ).logits.double()
    expected = -functional.log_softmax(logits, 1)[torch.arange(5), batch.labels]
    assert losses.shape == (5,)
    assert torch.allclose(losses.double(), expected, atol=1e-6)


def test_metrics_are_scikit_learns_over_the_whole_label_set(make_job: MakeJob) -> None:
    truth, predicted = np.array([0, 0, 1, 1, 2]), np.array([0, 1, 1, 1, 0])
    job = make_job(data={"labels": ["a", "b", "c", "d"]})
    examples = [Example((1,), int(label), 16) for label in truth]
    found = measure([], examples, list(predicted), job)
    assert found.entities is None
    assert found.accuracy == accuracy_score(truth, predicted) == 0.6
    assert found.macro_f1 == pytest.approx(
        f1_score(truth, predicted, labels=[0, 1, 2, 3], average="macro", zero_division=0)
    )
    assert [(c.label, c.support) for c in found.classes] == [("a", 2), ("b", 2), ("c", 1), ("d", 0)]
    # By hand: b is found twice in three guesses.
    assert found.classes[1].precision == pytest.approx(2 / 3)
    assert found.classes[1].recall == 1
    assert found.classes[3].f1 == 0


def test_a_job_names_a_task_that_exists(make_job: MakeJob) -> None:
    assert task_of(make_job()) is TASKS["seq-cls"]
    section = make_job().job.model_copy(update={"task": "regression"})
    odd = make_job().model_copy(update={"job": section})
    with pytest.raises(InvalidInput, match=r"job\.task must be one of seq-cls"):
        task_of(odd)
