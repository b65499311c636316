"""Bundles of evidence: good ones pass, planted faults and single bytes do not.

The oracle is tests/reference_verifier.py, which imports nothing of ours, and for each planted fault
the claim that the table names.
"""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.audit.certificate import identified, read_certificate, to_json
from common.audit.certification import certificate_of, promises
from common.audit.data_card import data_card_json
from common.audit.evidence import Evidence, write_bundle
from common.audit.spending import spendings
from common.audit.verify import verify
from common.documents.certificate_sheet import certificate_sheet
from common.documents.screen import html_of
from common.result import privacy_statement
from common.stored_zip import pack, unpack
from server.documents import write_documents
from tests.other_print import repacked
from tests.planted_evidence import PLANTED, VECTOR, Planted, table, uneven
from tests.reference_verifier import canonical, fault_of
from tests.story import COUNTS, Story, authorities, begin, told, told_with_counts, weights

NO_PRIVACY: dict[str, Any] = {"mode": "none", "epsilon": None, "delta": None, "clip_norm": None}
DOCS = Path(__file__).resolve().parents[4] / "docs" / "evidence.md"


def failed(data: bytes, root: bytes | None, adapter: bytes | None = None) -> set[str]:
    return {claim.name for claim in verify(data, root, adapter).failed}


def told_with_adapter() -> Story:
    """A whole job whose last round made the numbers of ``weights()``."""
    story = told()
    story.make(VECTOR, weights())
    return story


@pytest.fixture(scope="module")
def whole() -> Story:
    return told_with_adapter()


def test_a_true_bundle_passes_both_verifiers(whole: Story) -> None:
    data, root = whole.bundle(), whole.by.root.certificate
    assert {claim.status for claim in verify(data, root, weights()).claims} == {"pass"}
    assert fault_of(data, root, weights()) == ""


@pytest.mark.parametrize("silent", [(), ("B",)])
def test_counts_are_in_every_epsilon_for_both_verifiers(silent: tuple[str, ...]) -> None:
    """Who was asked for counts is charged, whether or not it gave any."""
    story = told_with_counts(silent=silent)
    data, root = story.bundle(), story.by.root.certificate
    report = verify(data, root)
    assert {claim.name for claim in report.claims if claim.status != "pass"} == {"adapter"}
    assert fault_of(data, root) == ""
    found = [claim.found for claim in report.claims if claim.name == "epsilon"]
    assert all("4 steps and its counts" in words for words in found)
    plain, stated = privacy_statement(story.job, seeded=False), story.result().sites
    assert all(site.epsilon > (plain.epsilon(4) or 9) for site in stated if site.epsilon)


@pytest.mark.slow
def test_the_certificate_states_counts_as_the_result_does() -> None:
    story = told_with_counts(silent=["B"])
    evidence = story.evidence()
    files = write_documents(evidence, [])
    data = write_bundle(evidence, files, story.by.server)
    assert not failed(data, story.by.root.certificate)
    assert fault_of(data, story.by.root.certificate) == ""
    stated, made = evidence.result.metrics, read_certificate(files["certificate.json"])
    assert made.counts is not None
    assert stated is not None
    found = (made.counts.noise_deviation, made.counts.sensitivity, made.counts.share)
    assert found == (stated.deviation, stated.sensitivity, 0.1)
    # What the counts cost alone is their share of the job's epsilon, at its share of delta.
    assert made.counts.epsilon == pytest.approx(0.6, abs=0.002)
    assert made.counts.delta == pytest.approx(1e-6)
    assert [site.releases_of_counts for site in made.sites] == [1, 1]
    assert {s.name: s.epsilon for s in made.sites} == {
        s.name: s.epsilon for s in evidence.result.sites
    }
    page = files["certificate.html"].decode()
    assert "Counts of the sites" in page
    assert "no site released any" not in page
    parts = made.model_dump()
    parts["counts"]["noise_multiplier"] *= 2
    forged = {"certificate.json": to_json(identified(**parts))}
    assert failed(write_bundle(evidence, forged, story.by.server), None) == {"documents"}


def simulated() -> Story:
    story = told()
    story.is_simulation = True
    return story


def for_programs(evidence: Evidence) -> dict[str, bytes]:
    """The documents that are compared, without the pages, which take seconds."""
    folders = {site.name: f"sites/{site.name}/" for site in evidence.result.sites}
    cards = {
        f"{folders[site.name]}data-card.json": data_card_json(evidence, site)
        for site in evidence.result.sites
    }
    if not promises(evidence):
        return cards
    sites = spendings(evidence)
    return cards | {
        f"{folder}certificate.json": to_json(certificate_of(evidence, sites, (), site=site))
        for site, folder in {"": "", **folders}.items()
    }


@pytest.mark.parametrize(
    "tell",
    [
        uneven,
        pytest.param(lambda: told(unit="record", unit_cap=None), marks=pytest.mark.slow),
        pytest.param(lambda: told(tuple("ABCDEFG")), marks=pytest.mark.slow),
        simulated,
    ],
    ids=["uneven", "records", "seven sites", "simulation"],
)
def test_true_documents_pass_both_verifiers(tell: Callable[[], Story]) -> None:
    story = tell()
    evidence, root = story.evidence(), story.by.root.certificate
    data = write_bundle(evidence, for_programs(evidence), story.by.server)
    report = verify(data, root)
    assert not report.failed
    assert fault_of(data, root) == ""
    made, cards = (0 if story.is_simulation else 1 + len(story.job.sites)), len(story.job.sites)
    words = f"{made} certificates and {cards} data cards (JSON) and 0 pages (HTML) made anew"
    assert words in next(claim.found for claim in report.claims if claim.name == "documents")


@pytest.mark.slow
def test_every_page_is_made_anew_and_what_a_pdf_draws_is_compared() -> None:
    story = told(("A",), 1)
    evidence, root = story.evidence(), story.by.root.certificate
    files = write_documents(evidence, [])

    def found(documents: dict[str, bytes]) -> dict[str, tuple[str, str]]:
        data = write_bundle(evidence, documents, story.by.server)
        return {claim.name: (claim.status, claim.found) for claim in verify(data, root).claims}

    claims = found(files)
    assert claims["documents"][0] == "pass"
    pages = sum(name.endswith(".html") for name in files)
    assert f"and {pages} pages (HTML) made anew" in claims["documents"][1]
    assert claims["printed"] == ("pass", "3 PDFs drawn anew, the same")
    assert fault_of(write_bundle(evidence, files, story.by.server), root) == ""
    one = {n: d for n, d in files.items() if n.startswith("sites/A/certificate.")}
    name, true = "sites/A/certificate.pdf", files["sites/A/certificate.pdf"]
    claims = found(one | {name: files["certificate.pdf"]})
    said = f"{name} must draw what the evidence says, got other pages or letters"
    assert claims["printed"] == ("fail", said)
    claims = found(one | {name: true.replace(b"(fpdf2 2", b"(fpdf2 9")})
    assert claims["printed"][0] == "not checkable"
    assert "drawn by fpdf2 9" in claims["printed"][1]
    assert found(one | {name: true.replace(b"(fpdf2 2", b"(words 2")})["printed"][0] == "fail"
    packed = repacked(true)
    assert len(packed) != len(true)
    assert found(one | {name: packed})["printed"][0] == "pass"


@pytest.mark.slow
def test_counts_after_rounds_that_patience_ended_have_their_own_number() -> None:
    story = told(rounds=4, metrics=COUNTS)
    del story.receipts[2:]
    assert "rounds" in failed(story.bundle(), story.by.root.certificate)
    story.count()
    assert story.receipts[-1].round == 5
    # Two rounds of four are no end, but the counts' number is not what is wrong.
    words = {c.name: c.found for c in verify(story.bundle(), story.by.root.certificate).failed}
    assert words["rounds"].startswith("job must end after 4 rounds")


def test_a_job_with_a_number_that_is_written_as_a_whole_one_passes_both_verifiers() -> None:
    """RFC 8785 has 1e16 in 17 digits, more than a reader of whole numbers can hold."""
    story = begin(training={"max_update_norm": 1e16})
    story.round()
    story.round()
    data, root = story.bundle(), story.by.root.certificate
    assert not failed(data, root)
    assert fault_of(data, root) == ""


def test_without_a_root_the_issuer_alone_is_not_checkable(whole: Story) -> None:
    claims = verify(whole.bundle(), None).claims
    open_ = {"issuer", "roster", "adapter"}
    assert {claim.name for claim in claims if claim.status != "pass"} == open_
    assert not failed(whole.bundle(), None)


def test_while_one_root_follows_another_both_may_be_given(whole: Story) -> None:
    data, root, other = whole.bundle(), whole.by.root.certificate, authorities().root.certificate
    for roots in (root + other, other + root):
        assert not failed(data, roots)
        assert fault_of(data, roots) == ""
    assert "issuer" in failed(data, other)
    assert fault_of(data, other)


def test_without_a_roster_of_the_root_made_up_sites_cannot_be_excluded(whole: Story) -> None:
    data, root = whole.bundle(roster=b""), whole.by.root.certificate
    report = verify(data, root)
    assert {c.name for c in report.claims if c.status != "pass"} == {"roster", "adapter"}
    assert fault_of(data, root) == ""
    told = "vouched for the true sites alone"
    assert any(told in words for words in report.not_checked)
    assert not any(told in words for words in verify(whole.bundle(), root).not_checked)


def test_a_last_word_that_is_missing_leaves_its_claim_open() -> None:
    story = told()
    story.away = ("B",)
    data, root = story.bundle(), story.by.root.certificate
    claims = verify(data, root).claims
    open_ = [("adapter", ""), ("ending", "B")]
    assert [(c.name, c.subject) for c in claims if c.status != "pass"] == open_
    assert fault_of(data, root) == ""


@pytest.mark.parametrize("rounds", [3, pytest.param(4, marks=pytest.mark.slow)])
def test_a_site_without_a_last_word_is_counted_for_all_that_it_may_have_done(rounds: int) -> None:
    """B was asked once, of rounds that patience may end; the oracle is the plan."""
    story = begin(rounds=rounds, training={"patience": 2})
    story.round()
    story.round(away=["B"])
    story.round(away=["B"])
    story.changes["kept_round"] = 1
    story.changes["vector_sha256"] = story.receipts[0].output_sha256
    assert spent(story) == {"A": 6, "B": 2}
    story.away = ("B",)
    assert spent(story) == {"A": 6, "B": 2 * rounds}
    evidence, root = story.evidence(), story.by.root.certificate
    documents = for_programs(evidence)
    data = write_bundle(evidence, documents, story.by.server)
    assert not failed(data, root)
    assert fault_of(data, root) == ""
    made = {
        site: read_certificate(documents[f"{site}certificate.json"])
        for site in ("", "sites/A/", "sites/B/")
    }
    pages = {site: html_of(certificate_sheet(one)).decode() for site, one in made.items()}
    said = "no last word on the job of B"
    assert [site for site, page in pages.items() if said in page] == ["", "sites/B/"]
    stated = made["sites/B/"].promise.epsilon
    assert stated == privacy_statement(story.job, seeded=False).epsilon(2 * rounds)
    assert failed(story.bundle(result=story.result()), root) == {"epsilon"}


def spent(story: Story) -> dict[str, int]:
    return {site.name: site.steps for site in story.evidence().result.sites}


# To draw a PDF takes a second or half of one: one case for each way to change it stays quick.
QUICK_PDFS = {
    "a certificate's PDF with half the epsilon",
    "a certificate's PDF without its last pages",
    "a certificate's PDF with a second document at its end",
    "a certificate's PDF that is none",
}


def in_its_set(planted: Planted) -> Any:  # noqa: ANN401
    is_long = "'s PDF" in str(planted) and str(planted) not in QUICK_PDFS
    return pytest.param(planted, marks=pytest.mark.slow if is_long else ())


@pytest.mark.parametrize("planted", map(in_its_set, PLANTED), ids=str)
def test_a_planted_fault_is_caught_by_its_claim(planted: Planted) -> None:
    data, root = planted.make()
    claims = verify(data, root, planted.adapter).claims
    assert (planted.caught, planted.status) in {(claim.name, claim.status) for claim in claims}
    assert fault_of(data, root, planted.adapter)


def test_without_a_root_other_certificates_for_the_same_key_are_noticed_too(
    smallest: tuple[bytes, bytes],
) -> None:
    files = unpack(smallest[0], "bundle")
    sealed = json.loads(files["manifest.sig"])
    leaf = sealed["chain"].split("-----BEGIN")[1]
    stranger = authorities().intermediate.certificate.decode()
    files["manifest.sig"] = canonical(sealed | {"chain": f"-----BEGIN{leaf}{stranger}"})
    assert failed(pack(files), None) == {"manifest"}


def test_a_forgery_under_another_root_is_whole_but_for_the_root() -> None:
    forged = told(epsilon=3.0)
    assert not failed(forged.bundle(), forged.by.root.certificate)
    assert not failed(forged.bundle(), None)
    assert "issuer" in failed(forged.bundle(), told().by.root.certificate)


def test_every_planted_fault_is_in_the_docs() -> None:
    page = DOCS.read_text("utf-8")
    rows = table().splitlines()
    assert len(set(rows)) >= 30
    assert [row for row in rows if row not in page] == []


def test_what_sites_may_honestly_do_passes() -> None:
    """A silent site, one that was away, a renewed certificate, a key that was handed over."""
    story = begin(("A", "B", "C"), 3)
    story.round(away=["C"])
    key, chain = story.by.enrol("B")
    story.certificates["B"] += chain
    seq = story.ledgers["B"].rekey(key)
    story.round(silent=["A"], named={"B": seq})
    story.round()
    data, root = story.bundle(), story.by.root.certificate
    assert not failed(data, root)
    assert fault_of(data, root) == ""
    spent = {site.name: site.steps for site in story.result().sites}
    assert spent == {"A": 6, "B": 6, "C": 4}


def test_a_job_without_privacy_and_a_simulation_promise_nothing_and_pass() -> None:
    story = told(**NO_PRIVACY)
    assert not failed(story.bundle(), story.by.root.certificate)
    assert fault_of(story.bundle(), story.by.root.certificate) == ""
    story = told()
    story.is_simulation = True
    report = verify(story.bundle(), story.by.root.certificate)
    assert report.manifest is not None
    assert (report.failed, report.manifest.kind) == ((), "SIMULATION")


@pytest.fixture(scope="module")
def smallest() -> tuple[bytes, bytes]:
    """One site, one round; the root."""
    story = told(("A",), 1, **NO_PRIVACY)
    return story.bundle(), story.by.root.certificate


@pytest.mark.slow
def test_every_single_byte_of_a_small_bundle_counts(smallest: tuple[bytes, bytes]) -> None:
    (data, root), source = smallest, random.Random(7)
    assert not failed(data, root)
    for place in range(len(data)):
        changed = bytearray(data)
        changed[place] ^= source.randrange(1, 256)
        assert verify(bytes(changed), root).failed, place


@pytest.mark.slow
def test_every_bit_of_a_small_bundle_counts_for_both_verifiers(
    smallest: tuple[bytes, bytes],
) -> None:
    data, root = smallest
    for place in range(len(data)):
        for bit in range(8):
            changed = bytearray(data)
            changed[place] ^= 1 << bit
            assert verify(bytes(changed), root).failed, (place, bit)
        assert fault_of(bytes(changed), root), place


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_bytes_put_in_taken_out_or_moved_are_noticed(
    smallest: tuple[bytes, bytes], chosen: st.DataObject
) -> None:
    data, root = smallest
    begin_, end = sorted(chosen.draw(st.tuples(*[st.integers(0, len(data))] * 2)))
    how = chosen.draw(st.sampled_from(["cut", "twice", "zeros", "end"]))
    changed = {
        "cut": data[:begin_] + data[end:],
        "twice": data[:end] + data[begin_:],
        "zeros": data[:begin_] + bytes(end - begin_) + data[end:],
        "end": data[:end],
    }[how]
    assert bool(verify(changed, root).failed) == (changed != data)


def test_bytes_of_a_large_bundle_count_too() -> None:
    story = told(("A", "B", "C", "D"), 12, **NO_PRIVACY)
    data, root, source = story.bundle(), story.by.root.certificate, random.Random(11)
    assert not failed(data, root)
    for _ in range(200):
        changed = bytearray(data)
        changed[source.randrange(len(data))] ^= source.randrange(1, 256)
        assert verify(bytes(changed), root).failed
