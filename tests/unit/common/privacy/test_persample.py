from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from opacus.optimizers import DPOptimizer
from psutil import virtual_memory
from torch import Tensor, nn
from torch.nn import functional

from common.adapter import LoadedAdapter, load_adapter, write_vector
from common.data.records import Record
from common.errors import InvalidInput, SelfCheckFailed
from common.job import Job
from common.privacy import persample
from common.privacy.clipping import LATTICE, clip_and_sum
from common.privacy.persample import (
    flat_gradients,
    flatten,
    per_sample_gradients,
    rows_within_memory,
    trainable,
)
from common.tasks.batches import Batch, Example, physical_batches
from common.tasks.seq_cls import encode, per_example_loss

MakeJob = Callable[..., Job]
CPU = torch.device("cpu")
TEXTS = ["w1 w2 w3", "w5", "w120 w121 w7 w8 w9 w10", "w299 w0 w44", "zebra"]


def moved(job: Job) -> LoadedAdapter:
    """The adapter away from its start, where A's gradient would vanish."""
    adapter = load_adapter(job, Path(job.model.base), "cpu")
    vector = np.random.default_rng(3).normal(0, 0.2, adapter.table.size).astype(np.float32)
    write_vector(adapter.model.train(), vector)
    return adapter


def examples(job: Job, adapter: LoadedAdapter) -> list[Example]:
    labels = job.data.labels
    rows = [Record(text, labels[i % len(labels)]) for i, text in enumerate(TEXTS)]
    return encode(adapter.tokenizer, rows, job)


def one_batch(chosen: Sequence[Example]) -> Batch:
    (batch,) = physical_batches(chosen, len(chosen), 0, CPU)
    return batch


def gradients(adapter: LoadedAdapter, batch: Batch) -> Tensor:
    model = adapter.model
    return flatten(per_sample_gradients(model, lambda: per_example_loss(model, batch)))


def alone(adapter: LoadedAdapter, example: Example) -> Tensor:
    """The gradient of one example by plain autograd, no hooks."""
    model, batch = adapter.model, one_batch([example])
    logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
    loss = functional.cross_entropy(logits, batch.labels)
    parts = torch.autograd.grad(loss, list(trainable(model).values()))
    return torch.cat([part.flatten() for part in parts])


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"method": "lora"},
        {"targets": ["query", "key", "value", "dense"], "rank": 3},
        {"head": ["classifier", "pooler"]},
        {"head": ["classifier", "LayerNorm"]},
    ],
)
def test_each_row_is_the_gradient_of_its_example_alone(
    job: MakeJob, change: dict[str, Any]
) -> None:
    made = job(adapter=change)
    adapter = moved(made)
    chosen = examples(made, adapter)
    found = gradients(adapter, one_batch(chosen))
    expected = torch.stack([alone(adapter, example) for example in chosen])
    assert found.shape == (len(chosen), adapter.table.size)
    assert float((found - expected).abs().max()) < 1e-6 * max(1.0, float(expected.abs().max()))
    assert float(expected.abs().max()) > 1e-2
    assert bool((expected.abs().amax(dim=0) > 0).float().mean() > 0.9)


def test_a_records_gradient_does_not_depend_on_its_neighbours(job: MakeJob) -> None:
    adapter = moved(job())
    chosen = examples(job(), adapter)
    whole = gradients(adapter, one_batch(chosen))
    for i in range(len(chosen)):
        rest = [e for j, e in enumerate(chosen) if j != i]
        without = gradients(adapter, one_batch(rest))
        kept = torch.cat([whole[:i], whole[i + 1 :]])
        assert float((kept - without).abs().max()) < 1e-6


def test_a_step_is_opacus_own(job: MakeJob) -> None:
    made = job()
    adapter, clip_norm, expected_batch = moved(made), 0.3, 4
    chosen = examples(made, adapter)
    model = adapter.model
    rows = per_sample_gradients(model, lambda: per_example_loss(model, one_batch(chosen)))
    parameters = trainable(model)
    for name, parameter in parameters.items():
        parameter.grad_sample = rows[name].clone()  # type: ignore[attr-defined]
    optimizer = DPOptimizer(
        torch.optim.SGD(list(parameters.values()), lr=0.3),
        noise_multiplier=0.0,
        max_grad_norm=clip_norm,
        expected_batch_size=expected_batch,
    )
    assert optimizer.pre_step()
    theirs = torch.cat([p.grad.flatten() for p in parameters.values() if p.grad is not None])
    for parameter in parameters.values():
        parameter.grad = None
        del parameter.grad_sample, parameter.summed_grad  # type: ignore[attr-defined]
    summed = clip_and_sum(flatten(rows), clip_norm).double() * (clip_norm / LATTICE)
    ours = summed / expected_batch
    # Opacus adds 1e-6 to a norm before it divides by it; we take 1e-6 off the factor.
    assert float((ours - theirs).abs().max()) < 1e-6
    assert float(theirs.abs().max()) > 1e-2


def test_the_model_is_left_without_hooks_and_gradients(job: MakeJob) -> None:
    adapter = moved(job())
    hooks = sum(len(m._forward_hooks) + len(m._backward_hooks) for m in adapter.model.modules())
    gradients(adapter, one_batch(examples(job(), adapter)))
    after = sum(len(m._forward_hooks) + len(m._backward_hooks) for m in adapter.model.modules())
    assert after == hooks
    assert all(p.grad is None for p in adapter.model.parameters())
    assert not any(hasattr(p, "grad_sample") for p in trainable(adapter.model).values())


def state(model: nn.Module) -> list[object]:
    """All that a module holds besides its parameters' values, and which of those are trained."""
    held: list[object] = []
    for name, module in model.named_modules():
        hooks = {k: len(v) for k, v in vars(module).items() if k.endswith("_hooks") and v}
        held.append((name, module.training, sorted(vars(module)), hooks))
    for name, parameter in model.named_parameters():
        held.append((name, parameter.requires_grad, parameter.grad, sorted(vars(parameter))))
    return held


@pytest.mark.parametrize("engine", persample.ENGINES)
@pytest.mark.parametrize("is_fused", [False, True])
@pytest.mark.parametrize("head", [["classifier"], ["classifier", "LayerNorm"]])
def test_the_model_is_left_as_found_also_by_an_error_of_the_closure(
    job: MakeJob, engine: str, is_fused: bool, head: list[str]
) -> None:
    made = job(adapter={"head": head})
    adapter = moved(made)
    model, batch = adapter.model, one_batch(examples(made, adapter))
    before, values = state(model), [p.detach().clone() for p in model.parameters()]

    def fails() -> Tensor:
        per_example_loss(model, batch)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        flat_gradients(model, fails, engine=engine, fused=is_fused)
    assert state(model) == before
    flat_gradients(model, lambda: per_example_loss(model, batch), engine=engine, fused=is_fused)
    assert state(model) == before
    assert all(torch.equal(p, v) for p, v in zip(model.parameters(), values, strict=True))


@pytest.mark.parametrize("engine", persample.ENGINES)
def test_an_empty_batch_has_rows_of_the_right_width(job: MakeJob, engine: str) -> None:
    adapter = moved(job())
    model, ids = adapter.model, torch.zeros((0, 5), dtype=torch.int64)
    found = per_sample_gradients(
        model, lambda: model(input_ids=ids, attention_mask=ids).logits[:, 0], engine=engine
    )
    assert {n: tuple(g.shape) for n, g in found.items()} == {
        n: (0, *p.shape) for n, p in trainable(model).items()
    }
    rows = flat_gradients(model, lambda: torch.zeros(0), engine=engine)
    assert rows.shape == (0, adapter.table.size)
    assert rows.dtype == torch.float32


@pytest.mark.parametrize("engine", persample.ENGINES)
def test_a_loss_that_is_no_vector_is_refused(engine: str) -> None:
    model = nn.Linear(3, 2).train()
    with pytest.raises(SelfCheckFailed, match="got 2 dimensions"):
        flat_gradients(model, lambda: model(torch.ones(4, 3)), engine=engine)


def test_an_unknown_engine_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InvalidInput, match="engine must be one of native, opacus, got 'ew'"):
        flat_gradients(nn.Linear(3, 2), lambda: torch.ones(2), engine="ew")


def test_a_model_without_trainable_parameters_is_refused() -> None:
    model = nn.Linear(3, 2).requires_grad_(False)
    with pytest.raises(SelfCheckFailed, match="must have trainable parameters"):
        flat_gradients(model, lambda: model(torch.ones(4, 3)).sum(dim=1))


@pytest.mark.parametrize(
    ("available", "limit", "current", "expected"),
    [
        (64_000, None, None, 16),  # a quarter of it, 16,000 bytes, in rows of 1,000
        (64_000, "max", "7", 16),
        (64_000, "50000", "10000", 10),
        (30_000, "50000", "10000", 7),
        (100, None, None, 1),
        (64_000, "5000", "9000", 1),
    ],
)
def test_rows_fill_a_quarter_of_what_the_machine_or_its_group_has_left(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    available: int,
    limit: str | None,
    current: str | None,
    expected: int,
) -> None:
    memory = virtual_memory()._replace(available=available)
    monkeypatch.setattr("psutil.virtual_memory", lambda: memory)
    monkeypatch.setattr(persample, "_CGROUP", tmp_path)
    if limit is not None and current is not None:
        (tmp_path / "memory.max").write_text(limit)
        (tmp_path / "memory.current").write_text(current)
    assert rows_within_memory(250, CPU) == expected


@pytest.mark.slow
def test_minilms_rows_are_single_example_gradients_and_opacus_own() -> None:
    from simulations.benchmarks.dp_step import make_batch, minilm
    from simulations.benchmarks.step_engines import TokenBatch, losses

    model = minilm("all")
    batch = make_batch(model, 3, records=4)
    found = flat_gradients(model, lambda: losses(model, batch))
    fused = flat_gradients(model, lambda: losses(model, batch), fused=True)
    opacus = flat_gradients(model, lambda: losses(model, batch), engine="opacus")
    rows = []
    for i in range(4):
        one = slice(i, i + 1)
        alone = TokenBatch(batch.input_ids[one], batch.attention_mask[one], batch.labels[one])
        parts = torch.autograd.grad(losses(model, alone).sum(), list(trainable(model).values()))
        rows.append(torch.cat([part.flatten() for part in parts]))
    expected = torch.stack(rows)
    assert float(expected.abs().max()) > 0.05
    for rows_found in (found, fused, opacus):
        assert float((rows_found - expected).abs().max()) < 1e-6


def test_a_batch_mean_is_refused(job: MakeJob) -> None:
    adapter = moved(job())
    batch = one_batch(examples(job(), adapter))
    with pytest.raises(SelfCheckFailed, match="loss must be a vector"):
        per_sample_gradients(adapter.model, lambda: per_example_loss(adapter.model, batch).mean())


class Shared(nn.Module):
    """Its scale is trained by no layer that has per-sample gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.unused = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x)
        return out


def test_a_trainable_that_clipping_would_miss_is_refused_without_the_batch_size() -> None:
    model = Shared().train()
    with pytest.raises(SelfCheckFailed, match=r"per-sample gradient of unused\.bias") as caught:
        per_sample_gradients(model, lambda: model(torch.ones(37, 3)).sum(dim=1))
    assert "37" not in str(caught.value)
