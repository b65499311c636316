from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats
from torch.nn import functional

from client.rehearsal import Rehearsal
from client.train import Trainer
from common.adapter import load_adapter, read_vector
from common.data.records import Record
from common.job import Job
from common.model import content_hash, locate
from common.privacy import sampling
from common.privacy.clipping import LATTICE
from common.privacy.mechanism import Mechanism, mechanism_of
from common.privacy.persample import trainable
from common.privacy.selfcheck import run_checks
from common.privacy.stream import KeySource, Stream, fresh_key, public_keys
from common.tasks.batches import Example, physical_batches
from common.tasks.seq_cls import encode, per_example_loss

MakeJob = Callable[..., Job]
Rows = Callable[..., list[tuple[str, str]]]
SEEDED = public_keys("test")


def trainer(job: Job, rows: list[tuple[str, str]], keys: KeySource | None = None) -> Trainer:
    adapter = load_adapter(job, Path(job.model.base), "cpu")
    units = [encode(adapter.tokenizer, [Record(*row)], job) for row in rows]
    return Trainer(job, adapter, units, mechanism_of(job, "A", keys), per_example_loss, rows=4)


def checked(made: Trainer) -> tuple[str, ...]:
    return run_checks(Rehearsal(made, "A"))


def noiseless(made: Trainer, **changes: Any) -> Trainer:  # noqa: ANN401
    return replace(made, mechanism=replace(made.mechanism, noise_multiplier=0.0, **changes))


def start_of(made: Trainer) -> NDArray[np.float32]:
    rng = np.random.default_rng(7)
    return rng.normal(0, 0.2, made.adapter.table.size).astype(np.float32)


def reference_step(
    made: Trainer, start: NDArray[np.float32], batch: list[list[Example]], rate: float
) -> NDArray[np.float64]:
    """One step of Abadi et al. (2016) by plain autograd, one unit after the other, in numpy."""
    model, mechanism = made.adapter.model, made.mechanism
    made.adapter.write(start)
    total = np.zeros(start.size)
    for unit in batch:
        row = np.zeros(start.size)
        for example in unit:
            (one,) = physical_batches([example], 1, 0, torch.device("cpu"))
            logits = model(input_ids=one.input_ids, attention_mask=one.attention_mask).logits
            loss = functional.cross_entropy(logits, one.labels)
            parts = torch.autograd.grad(loss, list(trainable(model).values()))
            row += np.concatenate([part.numpy().astype(np.float64).ravel() for part in parts])
        if mechanism.clip_norm is not None:
            row *= min(1.0, mechanism.clip_norm / float(np.linalg.norm(row)))
        total += row
    return -rate * total / mechanism.divisor


@pytest.mark.parametrize("clip_norm", [0.02, 0.7, 1e3])
def test_a_step_without_noise_is_the_textbooks(job: MakeJob, rows: Rows, clip_norm: float) -> None:
    made = job(training={"local_steps": 1}, privacy={"clip_norm": clip_norm})
    subject = noiseless(trainer(made, rows(30), SEEDED))
    start = start_of(subject)
    change = subject.train_round(start, 1)
    chosen = subject.mechanism.sample(subject.units, 1, 0)
    assert 2 < len(chosen) < 25
    expected = reference_step(subject, start, chosen, 0.3)
    rounding = 0.3 * 2 * len(chosen) * clip_norm / LATTICE / subject.mechanism.divisor
    assert np.abs(change - expected).max() < 1e-6 + rounding
    assert np.abs(expected).max() > 1e-5


def test_two_steps_follow_one_another(job: MakeJob, rows: Rows) -> None:
    subject = noiseless(trainer(job(), rows(30), SEEDED))
    start = at = start_of(subject)
    for step in range(2):
        chosen = subject.mechanism.sample(subject.units, 5, step)
        moved = reference_step(subject, at, chosen, 0.3)
        at = (at + moved).astype(np.float32)
    assert np.abs(subject.train_round(start, 5) - (at - start)).max() < 2e-6


def test_adamw_and_momentum_start_afresh_each_round(job: MakeJob, rows: Rows) -> None:
    for optimizer in ({"optimizer": "adamw"}, {"momentum": 0.9}):
        subject = noiseless(trainer(job(training=optimizer), rows(30), SEEDED))
        start = start_of(subject)
        first = subject.train_round(start, 1)
        subject.train_round(start, 2)
        assert subject.train_round(start, 1).tobytes() == first.tobytes()


def test_removing_a_record_moves_the_step_by_at_most_c_over_the_divisor(
    job: MakeJob, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = job(training={"local_steps": 1, "learning_rate": 1.0}, privacy={"clip_norm": 0.05})
    whole = noiseless(trainer(made, rows(12)))
    monkeypatch.setattr(sampling, "poisson_sample", lambda units, rate, stream: np.arange(units))
    start = start_of(whole)
    change = whole.train_round(start, 1)
    for left_out in (0, 5, 11):
        rest = [unit for i, unit in enumerate(whole.units) if i != left_out]
        without = replace(whole, units=rest).train_round(start, 1)
        moved = float(np.linalg.norm((change - without).astype(np.float64)))
        bound = 0.05 / whole.mechanism.divisor
        # Parameters round to 2e-8 of their size.
        assert 0.5 * bound < moved <= bound * (1 + 1e-5) + 1e-6


def by_patient(job: MakeJob, rows: Rows, **training: Any) -> Trainer:  # noqa: ANN401
    """Patients of one, three or four records, of which a step sees at most three."""
    made = job(
        privacy={"unit": "patient_id", "unit_cap": 3, "clip_norm": 0.05, "sampling_rate": 0.8},
        training=training,
    )
    records = trainer(made, rows(25), SEEDED).units
    units: list[list[Example]] = []
    for place, (record,) in enumerate(records):
        if place % 8 in (0, 1, 4):
            units.append([])
        units[-1].append(record)
    return replace(noiseless(trainer(made, [], SEEDED)), units=units)


def test_a_patients_records_are_summed_and_clipped_as_one(job: MakeJob, rows: Rows) -> None:
    subject = by_patient(job, rows, local_steps=1)
    start = start_of(subject)
    chosen = subject.mechanism.sample(subject.units, 1, 0)
    assert {len(unit) for unit in chosen} == {1, 3}
    expected = reference_step(subject, start, chosen, 0.3)
    for size in (1, 2, 64):
        change = replace(subject, rows=size).train_round(start, 1)
        assert np.abs(change - expected).max() < 1e-6
    assert np.abs(expected).max() > 1e-4


def test_removing_a_patient_leaves_the_others_sum_as_it_is(job: MakeJob, rows: Rows) -> None:
    subject = by_patient(job, rows)
    subject.adapter.write(start_of(subject))
    total = subject.bounded_sum(subject.units)
    for left_out, unit in enumerate(subject.units):
        rest = [u for i, u in enumerate(subject.units) if i != left_out]
        assert torch.equal(total - subject.bounded_sum(rest), subject.bounded_sum([unit]))


def test_an_empty_batch_still_releases_noise_and_takes_its_steps(
    job: MakeJob, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = job(training={"local_steps": 3, "learning_rate": 0.5})
    subject = trainer(made, rows(9))
    monkeypatch.setattr(sampling, "poisson_sample", lambda units, rate, stream: np.arange(0))
    change = subject.train_round(subject.adapter.initial, 1)
    mechanism = subject.mechanism
    deviation = (
        0.5 * mechanism.noise_multiplier * 0.7 * np.sqrt(3) / mechanism.divisor
    )  # three independent draws add up
    assert stats.kstest(change, "norm", (0, deviation)).pvalue > 1e-8
    assert np.std(change) == pytest.approx(deviation, rel=0.25)


def test_noise_is_fresh_in_each_round(job: MakeJob, rows: Rows) -> None:
    subject = trainer(job(), rows(9))
    first, again = (subject.train_round(subject.adapter.initial, 1) for _ in range(2))
    assert first.tobytes() != again.tobytes()


def test_frozen_a_and_the_base_never_move_and_b_and_the_head_do(job: MakeJob, rows: Rows) -> None:
    subject = trainer(job(), rows(30))
    model = subject.adapter.model
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    change = subject.train_round(subject.adapter.initial, 1)
    subject.adapter.write(subject.adapter.initial + change)
    for name, parameter in model.named_parameters():
        is_moved = not torch.equal(parameter.detach(), before[name])
        assert is_moved == (name in trainable(model)), name
    assert any("lora_A" in name for name in before if name not in trainable(model))


def test_the_model_is_left_at_the_rounds_start(job: MakeJob, rows: Rows) -> None:
    subject = trainer(job(), rows(9))
    start = start_of(subject)
    subject.train_round(start, 1)
    assert read_vector(subject.adapter.model).tobytes() == start.tobytes()


def test_the_physical_batch_changes_nothing_that_is_computed(job: MakeJob, rows: Rows) -> None:
    subject = noiseless(trainer(job(), rows(40), SEEDED))
    start = start_of(subject)
    changes = [replace(subject, rows=n).train_round(start, 1) for n in (1, 3, 64)]
    assert max(np.abs(changes[0] - other).max() for other in changes[1:]) < 1e-6


def test_without_privacy_nothing_is_clipped_and_nothing_added(
    job: MakeJob, rows: Rows, no_privacy: dict[str, Any]
) -> None:
    made = job(privacy=no_privacy, training={"local_steps": 1})
    subject = trainer(made, rows(30), SEEDED)
    start = start_of(subject)
    change = subject.train_round(start, 1)
    chosen = subject.mechanism.sample(subject.units, 1, 0)
    assert np.abs(change - reference_step(subject, start, chosen, 0.3)).max() < 1e-6
    assert change.tobytes() == subject.train_round(start, 1).tobytes()


@pytest.mark.slow
def test_the_loaded_model_passes_its_self_checks(job: MakeJob, rows: Rows) -> None:
    for change in ({}, {"method": "fedavg"}, {"targets": ["query", "key", "value", "dense"]}):
        checked(trainer(job(adapter=change), rows(3)))


def test_a_bf16_base_trains_fp32_trainables_and_passes_its_self_checks(
    job: MakeJob, rows: Rows
) -> None:
    subject = trainer(job(model={"dtype": "bfloat16"}), rows(20))
    checked(subject)
    assert {p.dtype for p in trainable(subject.adapter.model).values()} == {torch.float32}
    assert np.abs(subject.train_round(subject.adapter.initial, 1)).min() > 0


def test_the_divisor_is_public_and_never_the_realised_batch(job: MakeJob) -> None:
    mechanism: Mechanism = mechanism_of(job(), "B")
    assert mechanism.divisor == pytest.approx(0.25 * 52)
    total = torch.full((6,), 13 * LATTICE)
    released = replace(mechanism, noise_multiplier=0.0).release(total, 1, 0)
    assert released.tolist() == pytest.approx([0.7] * 6)  # in clip norms of 0.7


def test_sampling_and_noise_take_keys_of_their_own(job: MakeJob) -> None:
    asked: list[tuple[str, int, int]] = []

    def keys(purpose: str, round_: int, step: int) -> bytes:
        asked.append((purpose, round_, step))
        return SEEDED(purpose, round_, step)

    mechanism = replace(mechanism_of(job(), "A", keys), unit_cap=1)
    mechanism.sample([["record"]] * 10, 4, 1)
    mechanism.release(mechanism.zero(3, torch.device("cpu")), 4, 1)
    assert asked == [("sampling", 4, 1), ("records", 4, 1), ("noise", 4, 1)]
    assert Stream(SEEDED("noise", 4, 1)).words(1) != Stream(SEEDED("sampling", 4, 1)).words(1)


def test_a_private_job_takes_the_keys_it_is_given_and_one_without_privacy_takes_public_ones(
    job: MakeJob, no_privacy: dict[str, Any]
) -> None:
    naked = job(privacy=no_privacy)
    assert mechanism_of(job(), "A").keys is fresh_key
    # A simulation's repeat by themselves, and for all jobs of one seed alike.
    assert mechanism_of(job(), "A", SEEDED).keys is SEEDED
    assert mechanism_of(naked, "A", SEEDED).keys is SEEDED
    drawn = [mechanism_of(naked, site).keys("sampling", 2, 1) for site in "AAB"]
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.slow
def test_the_embedded_base_trains_and_passes_its_self_checks(job: MakeJob, rows: Rows) -> None:
    base = "builtin:minilm"
    made = job(model={"base": base, "sha256": content_hash(base), "max_length": 64})
    adapter = load_adapter(made, locate(base), "cpu")
    units = [encode(adapter.tokenizer, [Record(*row)], made) for row in rows(24)]
    subject = Trainer(made, adapter, units, mechanism_of(made, "A"), per_example_loss, rows=8)
    checked(subject)
    assert np.abs(subject.train_round(adapter.initial, 1)).min() > 0
