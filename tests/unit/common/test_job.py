import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from hypothesis import given
from hypothesis import strategies as st

from common.config import MAX_CONFIG_BYTES, parse
from common.errors import InvalidInput, JobRefused
from common.job import (
    MOST_JOB_SITES,
    SIGNATURE_DOMAIN,
    Job,
    load_job,
    parse_signed_job,
    require_countable,
    sign_job,
    verify_job,
)

KEY = Ed25519PrivateKey.from_private_bytes(b"\x05" * 32)
STRANGER = Ed25519PrivateKey.from_private_bytes(b"\x06" * 32)
SIGNER = KEY.public_key().public_bytes_raw().hex()


def tables(**sections: Mapping[str, Any]) -> dict[str, Any]:
    data: dict[str, dict[str, Any]] = {
        "job": {"name": "notes"},
        "model": {"base": "/srv/base", "sha256": "ab" * 32},
        "adapter": {"targets": ["query"]},
        "training": {"rounds": 4, "local_steps": 3, "learning_rate": 0.25},
        "privacy": {
            "mode": "site",
            "epsilon": 4.0,
            "delta": 1e-5,
            "clip_norm": 0.7,
            "sampling_rate": 0.05,
        },
        "data": {"name": "notes", "labels": ["x", "y"], "population": {"A": 300, "B": 500}},
        "evaluation": {"data": "builtin:wards"},
    }
    for name, table in sections.items():
        data[name] = {**data.get(name, {}), **table}
    return data


def make(**sections: Mapping[str, Any]) -> Job:
    return parse(Job, tables(**sections), "job.toml")


def write(path: Path, data: Mapping[str, Any]) -> Path:
    path.write_text(tomli_w.dumps(data), encoding="utf-8")
    return path


def test_what_follows_from_a_job_is_computed_from_public_constants() -> None:
    job = make()
    assert job.steps == 12
    assert job.divisor("A") == pytest.approx(15.0)
    assert job.weight("A") == pytest.approx(3 / 8)
    assert sum(job.weight(site) for site in job.sites) == pytest.approx(1)
    assert job.sites == ("A", "B")
    assert job.is_private


def test_without_privacy_there_is_no_noise() -> None:
    data = tables()
    data["privacy"] = {"mode": "none", "sampling_rate": 0.05}
    job = parse(Job, data, "f")
    assert job.noise_multiplier == 0
    assert not job.is_private


def test_the_canonical_bytes_do_not_depend_on_the_order_of_the_file(tmp_path: Path) -> None:
    data = tables()
    turned = {
        name: dict(reversed(list(table.items()))) for name, table in reversed(list(data.items()))
    }
    turned["data"]["population"] = {"B": 500, "A": 300}
    first = load_job(write(tmp_path / "a.toml", data))
    second = load_job(write(tmp_path / "b.toml", turned))
    assert first.canonical == second.canonical
    assert first.sha256 == second.sha256 == hashlib.sha256(first.canonical).hexdigest()


def test_a_whole_number_and_its_float_are_the_same_job() -> None:
    assert make(training={"deadline_s": 600}).sha256 == make(training={"deadline_s": 600.0}).sha256


def test_the_canonical_bytes_are_sorted_json_without_spaces() -> None:
    # For ASCII keys and these numbers RFC 8785 is what Python's own encoder gives.
    loaded = json.loads(make().canonical)
    assert (
        make().canonical
        == json.dumps(loaded, sort_keys=True, separators=(",", ":"))
        .replace("1e-05", "0.00001")
        .encode()
    )


@pytest.mark.parametrize(
    ("section", "change"),
    [
        ("privacy", {"epsilon": 4.5}),
        ("data", {"population": {"A": 301, "B": 500}}),
        ("data", {"labels": ["y", "x"]}),
        ("training", {"max_update_norm": 9.0}),
        ("adapter", {"seed": 1}),
    ],
)
def test_any_change_gives_a_job_another_name(section: str, change: dict[str, Any]) -> None:
    assert make(**{section: change}).sha256 != make().sha256


def test_fedsb_starts_orthonormal_where_nothing_is_said_and_the_job_says_so() -> None:
    job = make(adapter={"method": "fedsb"})
    assert job.sha256 == make(adapter={"method": "fedsb", "init": "orthonormal"}).sha256
    assert json.loads(job.canonical)["adapter"]["init"] == "orthonormal"
    assert make(adapter={"method": "fedsb", "init": "svd"}).adapter.start == "svd"
    ffa = make(adapter={"method": "ffa"})  # its bytes are those that it always had
    assert (ffa.adapter.start, "init" in json.loads(ffa.canonical)["adapter"]) == ("uniform", False)


def test_every_fault_is_named_by_its_key_at_once() -> None:
    data = tables(
        training={"rounds": 0, "learning_rate": float("nan"), "epochs": 3},
        privacy={"epsilon": -1.0, "sampling_rate": 1.5},
        adapter={"dropout": 0.1, "dora": True, "rank": "many"},
        data={"labels": ["x"], "population": {"../x": 3, "A": 0}},
        surplus={},
    )
    with pytest.raises(InvalidInput) as caught:
        parse(Job, data, "job.toml")
    for key in (
        "training.rounds must",
        "training.learning_rate must",
        "training.epochs must be a known key",
        "privacy.epsilon must",
        "privacy.sampling_rate must",
        "adapter.dropout must be 0 (",
        "adapter.dora must be false (",
        "adapter.rank must",
        "data.labels must",
        "data.population.../x must",
        "data.population.A must",
        "surplus must be a known key",
    ):
        assert key in str(caught.value)


@pytest.mark.parametrize(
    ("section", "change", "says"),
    [
        ("training", {"quorum": 3}, "training.quorum must be at most the 2 sites, got 3"),
        (
            "privacy",
            {"delta": 1 / 500},
            "privacy.delta must be less than 1/500 (one over the largest population)",
        ),
        ("privacy", {"unit": "patient_id"}, "privacy.unit_cap must be given with unit"),
        ("privacy", {"unit_cap": 3}, "privacy.unit_cap must be absent with unit 'record'"),
        ("privacy", {"unit": "patient_id", "unit_cap": 0}, "privacy.unit_cap"),
        ("privacy", {"unit": "../x", "unit_cap": 3}, "privacy.unit must"),
        ("training", {"optimizer": "adamw", "momentum": 0.9}, "training.momentum must be 0"),
        ("data", {"labels": ["x", "y", "x"]}, "data.labels must be distinct"),
        ("data", {"labels": ["x", ""]}, "data.labels.1 must"),
        ("data", {"population": {}}, "data.population must"),
        ("data", {"population": {"a" * 64: 3}}, "data.population"),
        ("job", {"name": "../x"}, "job.name must"),
        ("job", {"task": "causal-lm"}, "job.task must be 'seq-cls'"),
        ("model", {"sha256": "AB" * 32}, "model.sha256 must"),
        ("model", {"sha256": "ab" * 32 + "\n"}, "model.sha256 must"),
        ("model", {"revision": "main"}, "model.revision must"),
        ("adapter", {"targets": []}, "adapter.targets must"),
        ("adapter", {"targets": [".*"]}, "adapter.targets.0 must"),
        ("privacy", {"epsilon": float("inf")}, "privacy.epsilon must be finite"),
        ("privacy", {"clip_norm": 0.0}, "privacy.clip_norm must be at least 1e-09"),
        ("privacy", {"sampling_rate": 0.0}, "privacy.sampling_rate must be greater than 0"),
        ("privacy", {"delta": 0.0}, "privacy.delta must be greater than 0"),
        ("training", {"rounds": 10**400}, "training.rounds must be"),
        ("adapter", {"alpha": 10**20}, "adapter.alpha must be"),
        ("adapter", {"seed": 2**53}, "adapter.seed must be"),
        ("evaluation", {"records": 2**60}, "evaluation.records must be"),
        ("adapter", {"method": "lora"}, "adapter.method must be 'fedavg', 'ffa'"),
        (
            "adapter",
            {"method": "fedsb", "init": "uniform"},
            "adapter.init must be 'orthonormal' or 'svd' with method",
        ),
        ("adapter", {"method": "head", "init": "svd"}, "adapter.init must be 'uniform' or 'orth"),
        ("adapter", {"method": "head", "head": []}, "adapter.head must name a module with method"),
        ("adapter", {"ranks": {"A": 2}}, "adapter.ranks must be absent with method 'ffa', got it"),
        (
            "adapter",
            {"method": "flexlora", "rank": 4, "ranks": {"A": 5}},
            "adapter.ranks.A must be at most adapter.rank, 4, got 5",
        ),
        (
            "adapter",
            {"method": "flexlora", "ranks": {"Z": 2}},
            "adapter.ranks must be of sites of data.population, got Z",
        ),
        ("training", {"proximal_mu": -1.0}, "training.proximal_mu must be at least 0"),
        ("aggregation", {"rule": "krum"}, "aggregation.byzantine must be given with rule 'krum'"),
        (
            "aggregation",
            {"rule": "krum", "byzantine": 1},
            "training.quorum must be at least 5 with aggregation.rule 'krum' and byzantine 1",
        ),
        (
            "aggregation",
            {"rule": "trimmed-mean", "byzantine": 2},
            "training.quorum must be at least 5 with aggregation.rule 'trimmed-mean'",
        ),
        ("aggregation", {"byzantine": 1}, "aggregation.byzantine must be absent with rule 'mean'"),
        ("aggregation", {"rule": "norm-bound"}, "aggregation.norm_bound must be given"),
        ("aggregation", {"optimizer": "fedadam"}, "aggregation.beta_1 must be given with"),
    ],
)
def test_a_job_that_cannot_hold_its_promise_is_refused(
    section: str, change: dict[str, Any], says: str
) -> None:
    with pytest.raises(InvalidInput) as caught:
        make(**{section: change})
    assert says in str(caught.value)


@pytest.mark.parametrize("method", ["fedex", "flora", "flexlora"])
def test_products_have_no_middle_number_by_number(method: str) -> None:
    with pytest.raises(InvalidInput, match="must choose or bound whole updates with"):
        make(adapter={"method": method}, aggregation={"rule": "median"})
    made = make(adapter={"method": method}, aggregation={"rule": "norm-bound", "norm_bound": 2.0})
    assert made.aggregation is not None


@pytest.mark.parametrize("rule", ["krum", "multi-krum"])
def test_updates_of_several_ranks_are_not_compared(rule: str) -> None:
    population = dict.fromkeys("ABCDE", 300)

    def of(rank: int, asked: dict[str, Any]) -> Job:
        return make(
            adapter={"method": "flexlora", "rank": 3, "ranks": {"A": rank}},
            training={"quorum": 5},
            data={"population": population},
            aggregation=asked,
        )

    with pytest.raises(InvalidInput, match=r"must compare no updates with adapter\.ranks that"):
        of(1, {"rule": rule, "byzantine": 1})
    assert of(3, {"rule": rule, "byzantine": 1}).rank("A") == 3
    assert of(1, {"rule": "norm-bound", "norm_bound": 1.0}).rank("A") == 1


@pytest.mark.parametrize(
    ("method", "why"),
    [
        ("fedsvd", "its rounds change what the numbers stand for"),
        ("flora", "its rounds change what the numbers stand for"),
        ("flexlora", "its rounds change what the numbers stand for"),
        ("fedex", "what it folds in is what the means leave out"),
        ("rolora", "A and B take turns"),
    ],
)
def test_momentum_is_refused_where_it_would_break_what_a_method_is(method: str, why: str) -> None:
    asked = {"optimizer": "fedavgm", "learning_rate": 1.0, "momentum": 0.9}
    says = rf"aggregation\.optimizer must be 'none' with adapter\.method '{method}' \({why}"
    with pytest.raises(InvalidInput, match=says):
        make(adapter={"method": method}, aggregation=asked)
    assert make(adapter={"method": "fedavg"}, aggregation=asked).aggregation is not None


@pytest.mark.parametrize("key", ["epsilon", "delta", "clip_norm"])
def test_privacy_is_given_whole_or_not_at_all(key: str) -> None:
    data = tables()
    value = data["privacy"].pop(key)
    with pytest.raises(InvalidInput, match=rf"privacy\.{key} must be given with mode 'site'"):
        parse(Job, data, "f")
    none = tables()
    none["privacy"] = {"mode": "none", "sampling_rate": 0.05, key: value}
    with pytest.raises(InvalidInput, match=rf"privacy\.{key} must be absent with mode 'none'"):
        parse(Job, none, "f")


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=8,
    ),
    st.sampled_from([(s, k) for s, t in tables().items() for k in (*t, "new key")]),
)
def test_whatever_a_key_holds_the_job_is_refused_in_words_or_has_a_name(
    value: object, place: tuple[str, str]
) -> None:
    section, key = place
    data = tables()
    data[section][key] = value
    try:
        job = parse(Job, data, "f")
    except InvalidInput as error:
        refused = str(error)
    else:
        assert Job.model_validate_json(job.canonical).sha256 == job.sha256
        return
    assert " must " in refused


def test_paths_are_taken_from_the_files_folder(tmp_path: Path) -> None:
    data = tables(model={"base": "./base"}, evaluation={"data": "../dev.csv"})
    job = load_job(write(tmp_path / "job.toml", data))
    assert job.model.base == str(tmp_path / "base")
    assert job.evaluation.data == str(tmp_path.parent / "dev.csv")


def test_a_signed_job_survives_the_wire() -> None:
    signed = sign_job(make(), KEY)
    read = parse_signed_job(signed.to_bytes())
    assert verify_job(read, ("00" * 32, SIGNER)).sha256 == make().sha256


def test_the_signature_is_ed25519_over_the_domain_and_the_canonical_bytes() -> None:
    signed = sign_job(make(), KEY)
    public = Ed25519PublicKey.from_public_bytes(bytes.fromhex(SIGNER))
    public.verify(bytes.fromhex(signed.signature), b"veiltune job v1\n" + make().canonical)
    assert SIGNATURE_DOMAIN == b"veiltune job v1\n"


def test_a_job_edited_after_signing_is_refused() -> None:
    sent = json.loads(sign_job(make(), KEY).to_bytes())
    sent["job"]["privacy"]["epsilon"] = 40.0
    with pytest.raises(JobRefused, match="edited after signing"):
        verify_job(parse_signed_job(json.dumps(sent).encode()), (SIGNER,))


def test_a_strangers_signature_is_refused() -> None:
    with pytest.raises(JobRefused, match="signer must be one of the 1 allowed"):
        verify_job(sign_job(make(), STRANGER), (SIGNER,))


def test_a_strangers_signature_under_an_allowed_name_is_refused() -> None:
    forged = sign_job(make(), STRANGER).model_copy(update={"signer": SIGNER})
    with pytest.raises(JobRefused, match="signature must be over this manifest"):
        verify_job(forged, (SIGNER,))


def test_with_no_allowed_signer_nobody_may_sign() -> None:
    with pytest.raises(JobRefused, match="0 allowed"):
        verify_job(sign_job(make(), KEY), ())


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"[1]",
        b"null",
        b"{}",
        b"\xff",
        b"[" * 100_000,
        b'{"job": ' + b"9" * 5000 + b"}",
        b" " * (MAX_CONFIG_BYTES + 1),
        json.dumps({"job": tables(), "signer": SIGNER, "signature": ""}).encode(),
        json.dumps({"job": tables()}).encode(),
    ],
)
def test_bytes_that_are_no_signed_job_are_refused(data: bytes) -> None:
    with pytest.raises(JobRefused, match="job must be"):
        parse_signed_job(data)


def test_a_hold_out_is_declared_disjoint_in_words_or_not_at_all() -> None:
    plain = make()
    assert "disjoint_because" not in plain.canonical.decode()  # a job of before keeps its name
    told = make(evaluation={"disjoint_because": "  synthetic notes: no person is in them "})
    assert told.evaluation.disjoint_because == "synthetic notes: no person is in them"
    assert told.sha256 != plain.sha256
    for bad in (True, "yes", "          ", "x" * 501):
        with pytest.raises(InvalidInput, match="disjoint_because"):
            make(evaluation={"disjoint_because": bad})


def test_a_new_job_has_no_more_sites_than_a_receipt_has_room_for() -> None:
    def of(sites: int) -> Job:
        return make(data={"population": {f"s{n}": 100 for n in range(sites)}})

    require_countable(of(MOST_JOB_SITES))
    with pytest.raises(InvalidInput, match="must name at most 3000 sites, got 3001"):
        require_countable(of(MOST_JOB_SITES + 1))


def test_a_signed_job_that_has_no_canonical_form_is_refused() -> None:
    """Half of a surrogate pair comes by an escape in JSON; what was signed cannot be said then."""
    key = Ed25519PrivateKey.generate()
    signed = sign_job(make(), key)
    escaped = signed.to_bytes().replace(b'"name":"', b'"name":"\\ud800', 1)
    with pytest.raises(JobRefused, match="half of a surrogate pair"):
        parse_signed_job(escaped)
    section = signed.job.job.model_copy(update={"description": "\ud800"})
    odd = Job.model_construct(**(dict(signed.job) | {"job": section}))
    with pytest.raises(JobRefused, match="signature must be over this manifest"):
        verify_job(signed.model_copy(update={"job": odd}), (signed.signer,))
