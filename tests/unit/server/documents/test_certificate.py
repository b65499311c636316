"""The certificate against its schema, the evidence, and accountants asked anew."""

import importlib.resources
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from dp_accounting import dp_event, pld
from opacus.accountants import RDPAccountant

from common.audit import certificate as made
from common.audit.certificate import (
    id_of,
    read_certificate,
    require_agreement,
    to_json,
)
from common.audit.certificate_parts import Audit
from common.audit.certification import certificate_of
from common.audit.evidence import Evidence, write_bundle
from common.audit.report import CONSISTENT, REFUTED
from common.audit.spending import spendings
from common.audit.verify import verify
from common.documents.certificate_sheet import certificate_sheet
from common.documents.screen import html_of
from common.errors import InvalidInput, Refusal
from tests.story import told

ROOT = Path(__file__).resolve().parents[4]
SCHEMA = ROOT / "common/audit/schemas/certificate.schema.json"
REPORT = Audit(
    name="canary",
    site="northgate",
    code_sha256="22" * 32,
    runs=2,
    lower_bound=0.875,
    significance=0.001,
    epsilon=2.996964,  # of all 96 steps of the plan
    verdict=CONSISTENT,
)


@pytest.fixture(scope="module")
def certificate(evidence: Evidence) -> made.Certificate:
    return certificate_of(evidence, spendings(evidence), [REPORT])


@pytest.fixture(scope="module")
def document(certificate: made.Certificate) -> dict[str, Any]:
    return dict(json.loads(to_json(certificate)))


def test_the_published_schema_is_that_of_the_models() -> None:
    assert SCHEMA.read_text("utf-8") == made.schema()
    jsonschema.Draft202012Validator.check_schema(json.loads(SCHEMA.read_bytes()))


def test_the_schema_is_installed_with_the_package() -> None:
    file = importlib.resources.files("common.audit").joinpath("schemas/certificate.schema.json")
    assert file.read_bytes() == SCHEMA.read_bytes()


def test_a_certificate_keeps_to_the_published_schema(document: dict[str, Any]) -> None:
    validator = jsonschema.Draft202012Validator(json.loads(SCHEMA.read_bytes()))
    validator.validate(document)
    for broken in (
        {**document, "id": "VT-1"},
        {**document, "promise": {**document["promise"], "epsilon": "2.9"}},
        {k: v for k, v in document.items() if k != "exclusions"},
        {**document, "approved_by": "everybody"},
    ):
        assert not validator.is_valid(broken)


def test_a_certificate_of_before_still_reads_and_keeps_to_the_schema() -> None:
    """Made by ``simulate.py --grid link --sites 4 --rounds 3``; no later version may refuse it."""
    data = (ROOT / "tests/golden/certificate.json").read_bytes()
    assert to_json(read_certificate(data)) == data
    jsonschema.Draft202012Validator(json.loads(SCHEMA.read_bytes())).validate(json.loads(data))


def test_it_states_what_sp_800_226_asks_for(document: dict[str, Any]) -> None:
    asked = {
        "promise": ("definition", "neighbours", "unit", "unit_cap", "epsilon", "delta"),
        "mechanism": ("clip_norm", "noise_multiplier", "sampling_rate", "sampling_scheme"),
        "implementation": ("randomness", "floating_point", "lattice", "self_checks"),
        "budget_policy": ("job_epsilon", "job_delta", "words"),
        "utility": ("measure", "score", "words"),
    }
    for part, keys in asked.items():
        assert set(keys) <= document[part].keys()
    for part in ("accountants", "trust_model", "exclusions", "residual_risks", "signatures"):
        assert document[part]
    assert [row["name"] for row in document["accountants"]] == ["pld", "prv", "rdp"]


def test_every_epsilon_is_that_of_accountants_asked_here(document: dict[str, Any]) -> None:
    """PLD by dp-accounting's own event tree, RDP by Opacus, from the JSON's numbers alone."""
    mechanism = document["mechanism"]
    rate, noise = mechanism["sampling_rate"], mechanism["noise_multiplier"]
    for site in document["sites"]:
        step = dp_event.PoissonSampledDpEvent(rate, dp_event.GaussianDpEvent(noise))
        accountant = pld.PLDAccountant(value_discretization_interval=1e-3)
        accountant.compose(step, site["steps"])
        epsilon = accountant.get_epsilon(site["delta"])
        assert site["epsilon"] == pytest.approx(epsilon, abs=0.003)
        assert site["figures"]["pld"] == site["epsilon"]
        assert abs(site["figures"]["prv"] - 0.01 - epsilon) < 0.01
        bound = RDPAccountant()
        bound.history = [(noise, rate, site["steps"])]
        assert site["figures"]["rdp"] == pytest.approx(bound.get_epsilon(site["delta"]), rel=1e-6)


def test_a_person_at_k_sites_is_told_what_composition_says(document: dict[str, Any]) -> None:
    mechanism = document["mechanism"]
    step = dp_event.PoissonSampledDpEvent(
        mechanism["sampling_rate"], dp_event.GaussianDpEvent(mechanism["noise_multiplier"])
    )
    steps = sorted((site["steps"] for site in document["sites"]), reverse=True)
    for row in document["known_to_several_sites"]:
        accountant = pld.PLDAccountant(value_discretization_interval=1e-3)
        accountant.compose(step, sum(steps[: row["sites"]]))
        assert row["epsilon"] == pytest.approx(accountant.get_epsilon(row["delta"]), abs=0.003)
    assert [row["sites"] for row in document["known_to_several_sites"]] == [1, 2, 3]


def test_its_numbers_are_those_of_the_result(document: dict[str, Any], evidence: Evidence) -> None:
    result = evidence.result
    assert {s["name"]: s["epsilon"] for s in document["sites"]} == {
        s.name: s.epsilon for s in result.sites
    }
    assert document["promise"]["epsilon"] == result.epsilon
    assert document["utility"]["score"] == result.final.score
    worst = min(result.final.classes, key=lambda row: row.f1)
    assert document["utility"]["worst_class_f1"] == worst.f1
    assert document["job"]["adapter_sha256"] == result.adapter_sha256


def test_it_tells_the_cap_that_the_ledgers_first_entry_states(document: dict[str, Any]) -> None:
    life = {site["name"]: site["lifetime"] for site in document["sites"]}["northgate"]
    assert (life["cap_epsilon"], life["cap_delta"]) == (12.0, 1e-5)
    assert life["cap_accountant"] == "rdp-filter order 6.5"
    # Created, then reserved and released for each of six rounds; the last head is before a release.
    assert (life["ledger_entries"], life["entries_shown"]) == (12, 7)


def test_its_id_follows_from_its_content(certificate: made.Certificate) -> None:
    data = to_json(certificate)
    assert read_certificate(data) == certificate
    content = json.loads(data)
    content["promise"]["epsilon"] = 0.5
    with pytest.raises(InvalidInput, match=r"certificate.id must be VT-.*by its content"):
        read_certificate(json.dumps(content).encode())


def test_a_sites_certificate_speaks_of_that_site(evidence: Evidence) -> None:
    spent = spendings(evidence)
    site = certificate_of(evidence, spent, [], site="northgate")
    assert [row.name for row in site.sites] == ["northgate"]
    assert site.promise.epsilon == site.sites[0].epsilon
    assert site.id != id_of(certificate_of(evidence, spent, []))
    with pytest.raises(InvalidInput, match="site must be one of the job's, got 'elsewhere'"):
        certificate_of(evidence, spent, [], site="elsewhere")


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        ("promise", "epsilon", 0.5),
        ("promise", "unit", "patient_id"),
        ("promise", "delta", 1e-6),
        ("mechanism", "noise_multiplier", 4.5),
        ("mechanism", "clip_norm", 0.25),
        ("mechanism", "sampling_rate", 0.01),
        ("job", "sha256", "12" * 32),
        ("sites", "epsilon", 0.25),
        ("sites", "steps", 8),
        ("sites", "population", 5000),
        ("sites", "steps_signed", 1),
        ("sites", "rounds_asked", 1),
        ("sites", "name", "st-anne"),
        ("job", "description", "approved"),
        ("implementation", "randomness", "a seed"),
        ("budget_policy", "job_delta", 1e-6),
        ("utility", "score", 0.99),
        ("exclusions", 2, "nothing"),
        ("security_controls", 1, "none needed"),
    ],
)
def test_a_certificate_that_says_anything_else_than_the_evidence_is_refused(
    part: str, key: str | int, value: object, certificate: made.Certificate
) -> None:
    require_agreement(certificate, certificate)
    content = json.loads(to_json(certificate))
    (content[part][0] if part == "sites" else content[part])[key] = value
    bent = made.Certificate.model_validate_json(json.dumps(content))
    with pytest.raises(InvalidInput, match=rf"certificate\.{part}.*\.{key} must be .* by the evid"):
        require_agreement(bent, certificate)


def test_a_certificate_may_come_from_other_builds_of_the_accountants(
    certificate: made.Certificate,
) -> None:
    content = json.loads(to_json(certificate))
    content["accountants"][1]["software"] = "opacus 99"
    content["sites"][0]["figures"]["prv"] *= 1 + 1e-9
    other = made.Certificate.model_validate_json(json.dumps(content))
    require_agreement(other.model_copy(update={"id": id_of(other)}), certificate)
    content["sites"][0]["figures"]["prv"] *= 1 + 1e-5
    with pytest.raises(InvalidInput, match=r"certificate\.sites\.0\.figures\.prv must be"):
        require_agreement(made.Certificate.model_validate_json(json.dumps(content)), certificate)


def test_an_audit_says_one_of_two_words_that_its_bound_bears_out(evidence: Evidence) -> None:
    parts = REPORT.model_dump()
    for verdict in ("epsilon measured", REFUTED):
        with pytest.raises(ValueError, match="verdict"):
            Audit.model_validate(parts | {"verdict": verdict})
    # Consistent with the figure that it was compared with, which is none of this job's.
    beyond: dict[str, object] = {"lower_bound": 3.5, "epsilon": 4.0}
    wrong: list[tuple[dict[str, object], str]] = [
        ({"lower_bound": 3.5, "verdict": REFUTED}, "the claim is refuted"),
        (beyond, "epsilon must be 2.99696"),
        ({"epsilon": 0.0, "lower_bound": 0.0}, "epsilon must be 2.99696"),
        ({"site": "elsewhere"}, "must be of a site with an epsilon here"),
        ({"code_sha256": "0" * 64}, "must be one that northgate was charged under"),
        ({"significance": 0.999}, "significance must be at most 0.05"),
        ({"significance": 1e-300}, "significance must be at least 1e-09"),
    ]
    for changed, said in wrong:
        with pytest.raises(Refusal, match=said):
            certificate_of(evidence, spendings(evidence), [Audit.model_validate(parts | changed)])
    with pytest.raises(Refusal, match="got one twice"):
        certificate_of(evidence, spendings(evidence), [REPORT, REPORT])
    once = REPORT.model_copy(update={"runs": 1})
    again = once.model_copy(update={"lower_bound": 0.5})
    with pytest.raises(Refusal, match="no more than the 1 that share their significance, got 2"):
        certificate_of(evidence, spendings(evidence), [once, again])


@pytest.mark.slow
def test_an_auditor_finds_a_certificate_that_halves_epsilon_although_it_was_sealed() -> None:
    story = told()
    evidence, root = story.evidence(), story.by.root.certificate
    true = certificate_of(evidence, spendings(evidence), [])
    content = json.loads(to_json(true))
    content["promise"]["epsilon"] /= 2
    for site in content["sites"]:
        site["epsilon"] /= 2
    bent = made.Certificate.model_validate_json(json.dumps(content))
    bent = bent.model_copy(update={"id": id_of(bent)})

    def failed(document: made.Certificate) -> set[str]:
        files = {"certificate.json": to_json(document)}
        return {c.name for c in verify(write_bundle(evidence, files, story.by.server), root).failed}

    assert failed(true) == set()
    assert failed(bent) == {"documents"}


def test_there_is_room_for_a_second_epsilon(certificate: made.Certificate) -> None:
    shared = {"epsilon": 20.5, "delta": 1e-5, "rests_on": "three sites answer"}
    content = json.loads(to_json(certificate))
    content["promise"]["shared_noise"] = shared
    validator = jsonschema.Draft202012Validator(json.loads(SCHEMA.read_bytes()))
    validator.validate(content)


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b"\xff", b"[" * 100_000, b"1" * 5000])
def test_what_is_no_certificate_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidInput):
        read_certificate(data)


def test_a_report_that_was_handed_in_is_shown_and_never_called_a_measurement(
    certificate: made.Certificate,
) -> None:
    page = html_of(certificate_sheet(certificate)).decode()
    for words in ("0.875", "0.001", "3.00", "canary", "nothing was measured"):
        assert words in page
    assert "epsilon measured" not in page
    assert "at least" not in page[page.index("Attacks that were tried") :].partition("<h2")[0]
