"""The parts of the dp-step benchmark. Oracles: single-example autograd, and arithmetic by hand."""

import io
import os
import statistics
import time
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification

from common.errors import SelfCheckFailed
from common.privacy.persample import trainable
from simulations.benchmarks import dp_step, step_memory, step_models
from simulations.benchmarks.step_engines import (
    ENGINES,
    TokenBatch,
    losses,
    make_step,
    summed_gradient,
)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(4)
    config = BertConfig(
        vocab_size=30_100,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=24,
        num_labels=step_models._LABELS,  # type: ignore[call-arg]
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    base = BertForSequenceClassification(config)
    return step_models._with_lora(base, ["query", "value"], "classifier")


def clipped_sum(model: nn.Module, batch: TokenBatch, clip_norm: float) -> Tensor:
    """One backward pass an example, then the definition of clipping."""
    total = torch.zeros(sum(p.numel() for p in trainable(model).values()), dtype=torch.float64)
    for i in range(len(batch.labels)):
        one = TokenBatch(
            batch.input_ids[i : i + 1], batch.attention_mask[i : i + 1], batch.labels[i : i + 1]
        )
        parts = torch.autograd.grad(losses(model, one).sum(), list(trainable(model).values()))
        row = torch.cat([part.flatten() for part in parts]).double()
        total += row * min(1.0, clip_norm / float(row.norm()))
    return total


@pytest.mark.parametrize("engine", [e for e in ENGINES if e != "plain"])
def test_every_private_engine_steps_by_the_sum_of_clipped_gradients(
    model: nn.Module, engine: str
) -> None:
    clip_norm = dp_step.median_norm(model)
    batch = step_models.make_batch(model, 3, records=5)
    expected = clipped_sum(model, batch, clip_norm)
    own, step = make_step(engine, model, clip_norm)
    before = [p.detach().clone() for p in trainable(own).values()]
    step(batch)
    assert float((summed_gradient(own) - expected).abs().max()) < 2e-5 * clip_norm
    assert float(expected.abs().max()) > 0.1 * clip_norm
    after = trainable(own).values()
    assert all(not torch.equal(p, q) for p, q in zip(after, before, strict=True))


def test_the_plain_step_sums_without_clipping(model: nn.Module) -> None:
    batch = step_models.make_batch(model, 3, records=5)
    own, step = make_step("plain", model, 1e-3)
    step(batch)
    expected = clipped_sum(model, batch, 1e9)
    assert float((summed_gradient(own) - expected).abs().max()) < 1e-5


@pytest.mark.slow
def test_engines_are_timed_in_every_round_and_agree(model: nn.Module) -> None:
    timing = dp_step.measure(model, dp_step.median_norm(model), 2, time.process_time, "rounds")
    assert {name: len(values) for name, values in timing.seconds.items()} == dict.fromkeys(
        ENGINES, 2
    )
    assert 0 < timing.largest_difference <= timing.tolerance


def test_a_wrong_sum_stops_the_benchmark() -> None:
    right = torch.tensor([0.25, -3.0, 0.5])
    sums = {"plain": right * 9, "hooks": right, "ours": right + 1e-4, "fused": right - 2e-4}
    assert dp_step.check(sums, 3e-4) == pytest.approx(2e-4, rel=1e-2)
    with pytest.raises(SelfCheckFailed, match=r"clipped sum of fused must be within 0\.00015"):
        dp_step.check(sums, 1.5e-4)
    with pytest.raises(SelfCheckFailed, match="clipped sum of ours must be within"):
        dp_step.check(sums | {"ours": right * float("nan")}, 3e-4)
    with pytest.raises(SelfCheckFailed, match=r"clipped sum of ours must have shape \(3,\)"):
        dp_step.check(sums | {"ours": right[:2]}, 3e-4)


def test_a_ratio_is_the_median_of_the_rounds_own_ratios() -> None:
    seconds = {"plain": [2.0, 4.0, 5.0], "ours": [3.0, 4.4, 10.0]}
    found = dp_step.summary(seconds, "ours")
    assert found["ratio"] == 1.5  # of 1.5, 1.1 and 2: not the ratio of medians, 1.1
    assert found["ratio_iqr"] == [1.3, 1.75]
    assert found["median_s"] == statistics.median([3.0, 4.4, 10.0])


def test_a_batch_is_ragged_repeatable_and_full_length(model: nn.Module) -> None:
    batch, again = step_models.make_batch(model, 8), step_models.make_batch(model, 8)
    lengths = batch.attention_mask.sum(dim=1)
    assert torch.equal(batch.input_ids, again.input_ids)
    assert batch.input_ids.shape == (step_models.RECORDS, step_models.TOKENS)
    assert int(lengths.max()) == step_models.TOKENS
    assert len(set(lengths.tolist())) > 10
    assert not batch.input_ids[batch.attention_mask == 0].any()


def test_the_allocators_setting_reaches_children_and_nobody_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("MALLOC_MMAP_THRESHOLD_", raising=False)
    with step_memory._returned_memory():
        assert os.environ["MALLOC_MMAP_THRESHOLD_"] == "65536"
    assert "MALLOC_MMAP_THRESHOLD_" not in os.environ
    assert step_memory._status_bytes("VmHWM") >= step_memory._status_bytes("VmRSS") > 2**20


def test_the_table_shows_every_engine() -> None:
    engine: dict[str, Any] = {
        "median_s": 2.5,
        "ratio": 1.013,
        "ratio_iqr": [0.987, 1.021],
        "memory_mib": 991.0,
        "memory_ratio": 1.009,
    }
    result = {
        "records": 32,
        "tokens": 128,
        "parameters": 74_883,
        "noise_ms": 7.9,
        "clip_ms": 17.9,
        "mechanism_parameters": 332_000,
        "largest_difference": 9e-6,
        "tolerance": 1.3e-4,
        "engines": dict.fromkeys(ENGINES, engine),
    }
    out = io.StringIO()
    Console(file=out, width=120).print(dp_step.table(result))
    shown = out.getvalue()
    assert all(name in shown for name in ENGINES)
    assert "0.987 to 1.021" in shown
    assert "74,883" in shown


@pytest.mark.slow
def test_a_step_of_ours_takes_no_more_memory_than_its_target() -> None:
    plain = step_memory.peak_in_child("plain", "qv")
    assert plain > 300 * 2**20
    assert step_memory.peak_in_child("ours", "qv") / plain <= 1.05
