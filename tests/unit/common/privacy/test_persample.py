from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from opacus.optimizers import DPOptimizer
from torch import Tensor, nn
from torch.nn import functional

from common.adapter import LoadedAdapter, load_adapter
from common.data.records import Record
from common.errors import SelfCheckFailed
from common.job import Job
from common.privacy.clipping import LATTICE, clip_and_sum
from common.privacy.persample import flatten, per_sample_gradients, trainable
from common.tasks.batches import Batch, Example, physical_batches
from common.tasks.seq_cls import encode, per_example_loss

MakeJob = Callable[..., Job]
CPU = torch.device("cpu")
TEXTS = ["w1 w2 w3", "w5", "w120 w121 w7 w8 w9 w10", "w299 w0 w44", "zebra"]


def moved(job: Job) -> LoadedAdapter:
    """The adapter away from its start, where A's gradient would vanish."""
    adapter = load_adapter(job, Path(job.model.base), "cpu")
    vector = np.random.default_rng(3).normal(0, 0.2, adapter.table.size).astype(np.float32)
    adapter.model.train()
    adapter.write(vector)
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
        {"method": "fedavg"},
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
        delattr(parameter, "grad_sample")  # the model is shared
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
