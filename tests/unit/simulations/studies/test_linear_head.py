"""The baseline's gradients are autograd's, and without privacy it is plain federated regression."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from common.data.records import Record
from common.job import Job
from common.privacy.mechanism import Mechanism
from common.privacy.stream import public_keys
from simulations.scenario import Scenario
from simulations.studies import linear_head
from simulations.studies.methods import TASKS, Task, Trial


def data(records: int, labels: int = 4, size: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(3)
    features = functional.normalize(torch.randn(records, size, generator=draw))
    return torch.randint(labels, (records,), generator=draw), features


def test_a_record_s_gradient_is_autograds() -> None:
    truth, features = data(9)
    weights = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
    found = linear_head.gradients(weights, truth, features)
    for row, label, own in zip(found, truth, features, strict=True):
        asked = weights.clone().requires_grad_()
        loss = functional.cross_entropy((asked @ own)[None], label[None])
        (expected,) = torch.autograd.grad(loss, asked)
        torch.testing.assert_close(row.view_as(asked), expected, rtol=1e-5, atol=1e-6)


def test_what_is_released_is_the_clipped_sum_over_the_public_divisor() -> None:
    """At rate 1 and without noise all records are in it, each at most ``clip_norm`` long."""
    truth, features = data(40)
    weights, clip_norm = torch.zeros(4, 6), 0.5
    mechanism = Mechanism(1.0, 50.0, clip_norm, 0.0, None, public_keys("test"))
    found = linear_head._released(mechanism, weights, (truth, features), 1, 0)
    rows = linear_head.gradients(weights, truth, features).double().numpy()
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    assert (norms > clip_norm).all()
    expected = (rows * clip_norm / norms).sum(axis=0) / 50.0
    assert np.abs(found.numpy().ravel() - expected).max() < 1e-5


def test_a_study_that_was_killed_runs_only_what_is_left(
    make_job: Callable[..., Job],
    plain_job: Callable[..., Job],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Seventeen runs: four rates at each of two epsilons, then three epsilons under three seeds."""

    def scenario_of(task: Task, trial: Trial, seed: int, rows: int | None) -> Scenario:
        make = plain_job if trial.epsilon is None else make_job
        sections: dict[str, Any] = {"training": {"learning_rate": trial.rate}}
        if trial.epsilon is not None:
            sections["privacy"] = {"epsilon": trial.epsilon}
        records = {"A": [Record(f"w{seed} {rows}", "surgery")]}
        return Scenario(make(**sections), records, seed)

    trained: list[str] = []
    scores = itertools.count(1)

    def train(scenario: Scenario) -> linear_head.Score:
        if len(trained) == 9:
            raise KeyboardInterrupt
        trained.append(f"{scenario.job.sha256} {scenario.seed}")
        return linear_head.Score(next(scores) / 30, 0.25)

    monkeypatch.setattr(linear_head, "scenario_of", scenario_of)
    monkeypatch.setattr(linear_head, "train", train)
    with pytest.raises(KeyboardInterrupt):
        linear_head.study(TASKS["banking77"], tmp_path, lambda _: None)
    before, trained[:] = list(trained), []
    found = linear_head.study(TASKS["banking77"], tmp_path, lambda _: None)
    assert (len(before), len(trained)) == (9, 8)
    assert not set(before) & set(trained)
    trained[:] = ["none is left"] * 9
    assert linear_head.study(TASKS["banking77"], tmp_path, lambda _: None) == found
    assert len(found) == 9
    assert len({run.score.accuracy for run in found}) == 9
