"""The algebra of every method, against products that numpy forms of named tensors."""

import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from peft import PeftModel
from transformers import AutoModelForSequenceClassification

from common.adapter import LoadedAdapter, load_adapter
from common.audit.recompute import check_outcome
from common.errors import InvalidInput
from common.job import Job
from common.layout import Vector
from common.methods import Part
from common.saved import read_adapter, save_adapter
from server.aggregate import Change
from server.strategies import STRATEGIES
from server.strategies.base import Round
from simulations.seeded import seeded_keys

MakeJob = Callable[..., Job]
Matrices = dict[str, NDArray[np.float64]]

METHODS: dict[str, dict[str, Any]] = {
    "fedavg": {},
    "ffa": {},
    "fedsvd": {},
    "rolora": {},
    "fedex": {},
    "flora": {},
    "flexlora": {"rank": 3, "ranks": {"A": 1, "B": 3}},
    "fedsb": {"init": "orthonormal"},
    "head": {},
}
QUICK = {"ffa", "fedsvd", "flexlora"}  # they stand for all where quickness counts
STARTS = [
    (method, init)
    for method in METHODS
    for init in ("uniform", "orthonormal", "svd")
    if (method, init) not in {("fedsb", "uniform"), ("head", "svd")}
]
# Those whose model is exactly the weighted mean of the sites' models.
EXACT = ("ffa", "fedsvd", "rolora", "fedex", "flora", "fedsb", "head")
SCALING = {2: 3.0, 3: 2.0}  # alpha 6 over the rank


def loaded(job: MakeJob, method: str, **adapter: Any) -> tuple[Job, LoadedAdapter]:  # noqa: ANN401
    made = job(adapter={"method": method, **METHODS[method], **adapter})
    return made, load_adapter(made, Path(made.model.base), "cpu")


def tensors(adapter: LoadedAdapter, state: Vector) -> Mapping[str, NDArray[np.float64]]:
    """Every tensor of the adapter by name: those of ``state``, and what stays as it began."""
    found = {
        name: p.detach().numpy().astype(np.float64) for name, p in adapter.model.named_parameters()
    }
    offset = 0
    for spec in adapter.table.tensors:
        found[spec.name] = state[offset : offset + spec.size].reshape(spec.shape).astype(float)
        offset += spec.size
    return found


def changes(adapter: LoadedAdapter, state: Vector) -> Matrices:
    """What each adapted matrix of the base is changed by, by the base's own name; and the head."""
    held = tensors(adapter, state)
    in_state = {spec.name for spec in adapter.table.tensors}
    found = {}
    for name, a in held.items():
        if not name.endswith("lora_A.default.weight"):
            continue
        stem = name.removesuffix(".lora_A.default.weight")
        if f"{stem}.lora_B.default.0.weight" in held:
            b = held[f"{stem}.lora_B.default.1.weight"] @ held[f"{stem}.lora_B.default.0.weight"]
        else:
            b = held[f"{stem}.lora_B.default.weight"]
        base = f"{stem}.base_layer.weight"
        fold = held[base] if base in in_state else 0.0
        found[stem.removeprefix("base_model.model.")] = SCALING[len(a)] * (fold + b @ a)
    for name, tensor in held.items():
        if "modules_to_save" in name:
            found[name] = tensor
    return found


def random_state(adapter: LoadedAdapter, seed: int) -> Vector:
    rng = np.random.default_rng(seed)
    return (adapter.initial + 0.1 * rng.normal(size=adapter.initial.size)).astype(np.float32)


def sites(
    job: Job, adapter: LoadedAdapter, start: Vector, round_: int
) -> tuple[list[Change], list[Vector]]:
    """Two sites' changes of what they train, and the states that they ended with."""
    found, ends = [], []
    for seed, (site, weight) in enumerate((("A", 0.3), ("B", 0.9))):
        rank = job.rank(site)
        trained = adapter.layout.trained(round_, rank)
        rng = np.random.default_rng(40 + seed)
        change = rng.normal(0, 0.1, trained.size).astype(np.float32)
        end = adapter.layout.cut(start, rank).copy()
        end[trained.places] += change
        found.append(Change(site, change, weight))
        ends.append(end)
    return found, ends


def aggregated(
    job: Job, adapter: LoadedAdapter, start: Vector, came: list[Change], round_: int = 1
) -> Vector:
    method = STRATEGIES[job.adapter.method]
    folding = method.folding(Round(round_, start, job, adapter.layout))
    for change in came:
        folding.add(change)
    return folding.state()


def mean_of(parts: list[Matrices]) -> Matrices:
    return {name: (0.3 * parts[0][name] + 0.9 * parts[1][name]) / 1.2 for name in parts[0]}


def require_close(found: Matrices, expected: Matrices, tolerance: float = 2e-6) -> None:
    assert found.keys() == expected.keys()
    for name in found:
        assert np.abs(found[name] - expected[name]).max() < tolerance, name
    assert max(np.abs(matrix).max() for matrix in expected.values()) > 0.01


@pytest.mark.parametrize("round_", [1, 2])
@pytest.mark.parametrize("method", EXACT)
def test_the_model_is_the_mean_of_the_sites_models(job: MakeJob, method: str, round_: int) -> None:
    made, adapter = loaded(job, method)
    start = random_state(adapter, 1)
    came, ends = sites(made, adapter, start, round_)
    after = aggregated(made, adapter, start, came, round_)
    expected = mean_of([changes(adapter, end) for end in ends])
    require_close(changes(adapter, after), expected)


def test_the_mean_of_factors_is_not_the_mean_of_products(job: MakeJob) -> None:
    """What the other methods are for: if this held, the test above could not fail."""
    made, adapter = loaded(job, "fedavg")
    start = random_state(adapter, 1)
    came, ends = sites(made, adapter, start, 1)
    after = changes(adapter, aggregated(made, adapter, start, came))
    expected = mean_of([changes(adapter, end) for end in ends])
    assert max(np.abs(after[name] - expected[name]).max() for name in after) > 0.01


@pytest.mark.parametrize(("method", "round_"), [("fedavg", 1), ("rolora", 1), ("rolora", 2)])
def test_each_factor_moves_by_the_mean_of_its_changes(
    job: MakeJob, method: str, round_: int
) -> None:
    made, adapter = loaded(job, method)
    start = random_state(adapter, 2)
    came, ends = sites(made, adapter, start, round_)
    after = aggregated(made, adapter, start, came, round_)
    expected = (0.3 * ends[0].astype(float) + 0.9 * ends[1]) / 1.2
    assert np.abs(after - expected).max() < 1e-6
    parts = np.split(after != start, _ends(adapter))
    names = [spec.name for spec in adapter.table.tensors]
    moved = {name.split(".")[-3] for name, part in zip(names, parts, strict=True) if part.any()}
    trained = {"fedavg1": {"lora_A", "lora_B"}, "rolora1": {"lora_B"}, "rolora2": {"lora_A"}}
    assert moved & {"lora_A", "lora_B"} == trained[f"{method}{round_}"]


def _ends(adapter: LoadedAdapter) -> NDArray[np.int64]:
    return np.cumsum([spec.size for spec in adapter.table.tensors])[:-1]


@pytest.mark.parametrize("start_is_zero", [True, False])
def test_fedsvd_leaves_a_with_orthonormal_rows(job: MakeJob, *, start_is_zero: bool) -> None:
    made, adapter = loaded(job, "fedsvd")
    start = adapter.initial if start_is_zero else random_state(adapter, 3)
    came, _ = sites(made, adapter, start, 1)
    if start_is_zero:  # no product yet, so that any rows would do
        came = [Change(c.site, np.zeros_like(c.vector), c.weight) for c in came]
    after = tensors(adapter, aggregated(made, adapter, start, came))
    rows = [tensor for name, tensor in after.items() if "lora_A" in name]
    assert len(rows) == 4
    for a in rows:
        assert np.abs(a @ a.T - np.eye(2)).max() < 1e-6


def test_fedsvd_takes_no_rank_that_has_no_orthonormal_rows(job: MakeJob) -> None:
    """The base is 32 wide: of 33 rows one is not orthogonal to the others."""
    with pytest.raises(InvalidInput, match="rank must be at most 32 with method 'fedsvd'"):
        loaded(job, "fedsvd", rank=33)
    made, adapter = loaded(job, "fedsvd", rank=32)
    came, _ = sites(made, adapter, adapter.initial, 1)
    after = tensors(adapter, aggregated(made, adapter, adapter.initial, came))
    for rows in (tensor for name, tensor in after.items() if "lora_A" in name):
        assert np.abs(rows @ rows.T - np.eye(32)).max() < 1e-6


def test_fedex_keeps_the_means_of_a_and_b_and_folds_the_rest(job: MakeJob) -> None:
    made, adapter = loaded(job, "fedex")
    start = random_state(adapter, 4)
    came, ends = sites(made, adapter, start, 1)
    after = tensors(adapter, aggregated(made, adapter, start, came))
    held = [tensors(adapter, end) for end in ends]
    for name in after:
        if "lora_" in name:
            assert np.allclose(
                after[name], (0.3 * held[0][name] + 0.9 * held[1][name]) / 1.2, atol=1e-6
            )


def test_flora_begins_a_new_adapter_each_round(job: MakeJob) -> None:
    made, adapter = loaded(job, "flora")
    start = random_state(adapter, 5)
    came, _ = sites(made, adapter, start, 1)
    first, again, later = (
        tensors(adapter, aggregated(made, adapter, start, came, round_)) for round_ in (1, 1, 2)
    )
    for name in first:
        if "lora_B" in name:
            assert not first[name].any()
        if "lora_A" in name:
            assert np.array_equal(first[name], again[name])
            assert not np.array_equal(first[name], later[name])
            assert np.abs(first[name]).max() <= 1 / np.sqrt(32)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_flexlora_is_the_nearest_product_of_every_rank(job: MakeJob, rank: int) -> None:
    """Eckart and Young: the nearest matrix of a rank is off by the other singular values."""
    made, adapter = loaded(job, "flexlora")
    start = random_state(adapter, 6)
    came, ends = sites(made, adapter, start, 1)
    after = adapter.layout.cut(aggregated(made, adapter, start, came), rank)
    wanted = mean_of([changes(adapter, end) for end in ends])
    for name, found in changes(adapter, after).items():
        if "modules_to_save" in name:
            assert np.allclose(found, wanted[name], atol=1e-6)
            continue
        values = np.linalg.svd(wanted[name], compute_uv=False)
        assert np.linalg.matrix_rank(found, tol=1e-5) == rank
        assert np.linalg.norm(found - wanted[name]) == pytest.approx(
            np.linalg.norm(values[rank:]), abs=1e-5
        )


def test_a_site_of_a_lower_rank_answers_with_fewer_numbers(job: MakeJob) -> None:
    _, adapter = loaded(job, "flexlora")
    small, large = (adapter.layout.trained(1, rank) for rank in (1, 3))
    head = 3 * 32 + 3
    assert (small.size, large.size) == (4 * 1 * 64 + head, 4 * 3 * 64 + head)
    assert {spec.shape for spec in small.table.tensors} == {(1, 32), (32, 1), (3, 32), (3,)}
    start = random_state(adapter, 7)
    cut = adapter.layout.cut(start, 1)
    assert np.array_equal(cut[small.places], start[small.places])
    assert np.count_nonzero(cut) == small.size


@pytest.mark.parametrize("method", METHODS)
def test_the_order_of_the_sites_does_not_matter(job: MakeJob, method: str) -> None:
    made, adapter = loaded(job, method)
    start = random_state(adapter, 8)
    came, _ = sites(made, adapter, start, 1)
    results = [
        changes(adapter, aggregated(made, adapter, start, list(order)))
        for order in itertools.permutations(came)
    ]
    require_close(results[1], results[0], 1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_one_site_alone_is_local_training(job: MakeJob, method: str) -> None:
    made, adapter = loaded(job, method)
    start = random_state(adapter, 9)
    came, ends = sites(made, adapter, start, 1)
    after = aggregated(made, adapter, start, [came[1]])
    require_close(changes(adapter, after), changes(adapter, ends[1]))


@pytest.mark.parametrize(
    "method",
    [pytest.param(m, marks=() if m in QUICK else pytest.mark.slow) for m in METHODS],
)
def test_the_saved_adapter_is_the_base_and_the_changes_and_reads_back(
    job: MakeJob, method: str, tmp_path: Path
) -> None:
    made, adapter = loaded(job, method)
    state = random_state(adapter, 10)
    wanted = changes(adapter, state)
    save_adapter(adapter, state, tmp_path / "out", "base")
    inputs = adapter.tokenizer(["w1 w120 w250", "w7"], padding=True, return_tensors="pt")
    with torch.inference_mode():
        ours = adapter.model.eval()(**inputs).logits
    base = AutoModelForSequenceClassification.from_pretrained(made.model.base, num_labels=3)
    own = {name: p.detach().numpy().copy() for name, p in base.named_parameters()}
    peft = PeftModel.from_pretrained(base, str(tmp_path / "out")).eval()
    with torch.inference_mode():
        assert torch.allclose(peft(**inputs).logits, ours, atol=1e-5)
    merged = dict(peft.merge_and_unload().named_parameters())
    for name in (
        "bert.encoder.layer.0.attention.self.query",
        "bert.encoder.layer.1.attention.self.value",
    ):
        moved = merged[f"{name}.weight"].detach().numpy() - own[f"{name}.weight"]
        assert np.abs(moved - wanted[name]).max() < 2e-5
    assert read_adapter(adapter, tmp_path / "out").tobytes() == state.tobytes()


@pytest.mark.parametrize(("method", "init"), STARTS)
def test_every_start_leaves_the_base_as_it_is(job: MakeJob, method: str, init: str) -> None:
    _, adapter = loaded(job, method, init=init)
    found = changes(adapter, adapter.initial)
    assert not any(m.any() for name, m in found.items() if "modules_to_save" not in name)
    rows = [t for name, t in tensors(adapter, adapter.initial).items() if "lora_A" in name]
    for a in rows:
        gram = a @ a.T
        assert np.allclose(gram, np.eye(len(a)), atol=1e-6) == (init != "uniform")


def test_singular_vectors_are_the_bases_own(job: MakeJob) -> None:
    _, adapter = loaded(job, "fedsb", init="svd")
    held = tensors(adapter, adapter.initial)
    name = "base_model.model.bert.encoder.layer.0.attention.self.query"
    weight = held[f"{name}.base_layer.weight"]
    left, values, right = np.linalg.svd(weight)
    a, b = held[f"{name}.lora_A.default.weight"], held[f"{name}.lora_B.default.1.weight"]
    assert np.allclose(np.abs(np.sum(a * right[:2], axis=1)), 1, atol=1e-5)
    assert np.allclose(b.T @ weight @ a.T, np.diag(values[:2]), atol=1e-4)
    assert np.allclose(np.abs(np.sum(b.T * left[:, :2].T, axis=1)), 1, atol=1e-5)


@pytest.mark.slow  # by ffa and flexlora, test_inprocess.py and test_stacked.py run private jobs
@pytest.mark.parametrize("method", METHODS)
def test_a_private_job_runs_by_every_method(
    job: MakeJob, federation: Callable[..., Any], method: str
) -> None:
    """Self-checks, charges, receipts and outcome, and the state that the next round starts from."""
    made = job(adapter={"method": method, **METHODS[method]}, training={"rounds": 2})
    fed = federation(made)
    result = fed.run()
    _, claims = check_outcome(fed.folder / "out")
    assert claims
    assert all(claim.passed for claim in claims)
    assert result.private
    adapter = load_adapter(made, Path(made.model.base), "cpu")
    _, held = fed.checkpoints.latest(made.sha256)
    state = np.frombuffer(held, "<f4")
    for row in result.rounds:  # the whole state goes down to each site, with d x k where it has it
        assert row.bytes_down is not None
        assert 0 < row.bytes_down - len(made.sites) * state.nbytes < len(made.sites) * 30_000
    assert read_adapter(adapter, fed.folder / "out" / "adapter").tobytes() == state.tobytes()
    moved = {
        part
        for part, piece in zip(
            adapter.layout.parts, np.split(state != adapter.initial, _ends(adapter)), strict=True
        )
        if piece.any()
    }
    assert moved == set(adapter.layout.parts) - ({Part.B} if method == "flora" else set())


@pytest.mark.slow
def test_a_job_without_privacy_learns_by_products(
    job: MakeJob, plain_federation: Callable[..., Any], no_privacy: dict[str, Any]
) -> None:
    made = job(
        adapter={"method": "flora"},
        privacy=no_privacy,
        training={"rounds": 6, "local_steps": 6, "optimizer": "adamw", "learning_rate": 0.02},
    )
    # The batches are a seed's: drawn afresh, a run now and then learns too little to tell.
    fed = plain_federation(made, keys=lambda site: seeded_keys(1, site))
    result = fed.run()
    assert result.final.accuracy > 0.6
