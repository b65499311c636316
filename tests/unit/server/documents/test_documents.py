"""Everything together: files, hostile names, seeded runs, determinism, bill of materials."""

import json
import re
import subprocess
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from importlib.metadata import version
from shutil import which

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from common.audit.certification import certificate_of
from common.audit.evidence import Evidence
from common.audit.spending import spendings
from common.documents.certificate_sheet import certificate_sheet
from common.documents.pages import sheets
from common.documents.paper import pdf_of
from common.documents.screen import html_of
from common.documents.sheet import Code, Prose, Sheet, Table, Terms, section, shown
from common.job import Job
from common.result import Result
from server.documents import write_documents
from server.documents.sbom import bill_of_materials
from server.report.page import page as report_page
from tests.story import told, told_with_counts

MakeEvidence = Callable[..., Evidence]
MakeOutcome = Callable[..., tuple[Result, Job]]
HOSTILE = ['<script>alert("x")</script>', "a&b <img src=x onerror=y>", "' onload='z", "\u202ergb"]


class Outline(HTMLParser):
    """Tags with their attributes, and the text, by the standard library's parser."""

    def __init__(self, page: bytes) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(page.decode())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())


def text_of(pdf: bytes) -> str:
    """By poppler, which has nothing of ours in it; by our own eyes where it is not installed."""
    if which("pdftotext") is None:
        pytest.skip("needs pdftotext (poppler-utils)")
    command = ["pdftotext", "-layout", "-", "-"]
    done = subprocess.run(command, input=pdf, capture_output=True, check=True)
    return " ".join(done.stdout.decode().split())


@pytest.fixture(scope="module")
def documents(evidence: Evidence) -> dict[str, bytes]:
    return write_documents(evidence)


def test_a_private_job_has_each_document(documents: dict[str, bytes]) -> None:
    sites = ("northgate", "riverside", "st-anne")
    of_sites = {
        f"sites/{site}/{name}"
        for site in sites
        for name in (
            "certificate.html", "certificate.json", "certificate.pdf",
            "data-card.html", "data-card.json",
        )
    }  # fmt: skip
    assert set(documents) == of_sites | {
        "certificate.html", "certificate.json", "certificate.pdf", "index.html", "index.pdf",
        "model-card.md", "policies.html", "receipts.html", "refusals.html", "sbom.cdx.json",
    }  # fmt: skip


def test_pages_run_nothing_and_fetch_nothing(documents: dict[str, bytes]) -> None:
    for name, data in documents.items():
        if not name.endswith(".html"):
            continue
        page = Outline(data)
        assert not {"script", "img", "iframe", "object", "base"} & {tag for tag, _ in page.tags}
        for _, attributes in page.tags:
            assert not [key for key in attributes if key.startswith("on") or key == "style"]
            href = attributes.get("href") or "data:,"
            inside = {*documents, "../job.json", "../result.json"}
            assert href == "data:," or (name == "index.html" and href in inside), (name, href)


def test_a_page_and_its_print_say_the_same_numbers(
    documents: dict[str, bytes], evidence: Evidence
) -> None:
    page, printed = (
        Outline(documents["certificate.html"]).text,
        text_of(documents["certificate.pdf"]),
    )
    identity = json.loads(documents["certificate.json"])["id"]
    for words in ("ε 3.00", "57.1", "2.34", "0.963867", identity, "northgate", "7.50"):
        assert words in page
        assert words in printed
    assert printed.index("Not covered by this promise") < printed.index("What each site spent")
    assert f"{evidence.result.privacy.noise_multiplier:.6g}" == "0.963867"


def test_the_first_printed_page_says_epsilon_unit_who_and_what_is_not_covered(
    documents: dict[str, bytes],
) -> None:
    first = text_of(documents["certificate.pdf"]).split("1 / 5")[0]
    for words in (
        "ε 3.00", "δ 10", "record", "protects one", "riverside, st-anne, northgate",
        "Against whom", "Not covered by this promise", "Other jobs on the same records",
    ):  # fmt: skip
        assert words in first


def test_a_seeded_simulation_gets_no_certificate_and_every_page_says_so(
    outcome: MakeOutcome, make_evidence: MakeEvidence
) -> None:
    made = write_documents(
        make_evidence(*outcome(seeded=True, steps={"northgate": 48}), is_simulation=True)
    )
    assert not [name for name in made if "certificate" in name]
    pages = [name for name in made if name.endswith(".html")]
    assert len(pages) == 7
    for name in pages:
        assert "SIMULATION: nothing is promised" in Outline(made[name]).text, name
    assert "no privacy guarantee" in made["model-card.md"].decode()
    assert json.loads(made["sites/riverside/data-card.json"])["epsilon"] is None
    assert "ε" not in Outline(made["index.html"]).text
    assert "SIMULATION" in text_of(made["index.pdf"])


def test_a_run_marked_as_simulation_is_one_whatever_its_result_says(evidence: Evidence) -> None:
    made = write_documents(replace(evidence, is_simulation=True))
    assert not [name for name in made if "certificate" in name]
    assert "SIMULATION" in Outline(made["index.html"]).text


# Words with which a page speaks of what left a site.
LEFT = re.compile(r"noised updates?\b|left the site|may leave a site|sees what", re.IGNORECASE)


def told_of_counts(evidence: Evidence) -> dict[str, bool]:
    """Every page that speaks of what left a site, and whether it names noised counts."""
    job, result = evidence.job.job, evidence.result
    pages = write_documents(evidence) | {"report.html": report_page(result, job).encode()}
    texts = {
        name: Outline(data).text if name.endswith(".html") else data.decode()
        for name, data in pages.items()
        if not name.endswith(".pdf")
    }
    return {n: "noised counts" in text for n, text in texts.items() if LEFT.search(text)}


@pytest.mark.slow
def test_each_page_that_says_what_left_a_site_names_the_counts_of_a_job_that_has_them() -> None:
    story = told_with_counts(silent=["B"])
    found = told_of_counts(story.evidence())
    assert {
        "certificate.html", "certificate.json", "model-card.md", "policies.html", "report.html",
        "sites/A/data-card.html", "sites/B/data-card.html", "sites/B/certificate.json",
    } <= found.keys()  # fmt: skip
    assert not [name for name, is_named in found.items() if not is_named]
    story.is_simulation = True
    assert all(told_of_counts(story.evidence()).values())
    assert not any(told_of_counts(told().evidence()).values())


def test_no_page_of_a_job_with_counts_denies_them() -> None:
    made = write_documents(told_with_counts().evidence())
    policies = Outline(made["policies.html"]).text
    assert "no other count, loss or metric" in policies
    assert "(accuracy, classes)" in policies
    assert "no count, no metric" not in policies
    card = Outline(made["sites/A/data-card.html"]).text
    assert "noised updates and, once, noised counts of held-out records alone" in card
    assert "updates alone" not in card
    assert "would have to be charged" not in card
    never = {row["party"]: row for row in json.loads(made["certificate.json"])["trust_model"]}
    assert "anything that a site sent" not in never["Whoever has the adapter"]["never_sees"]


@pytest.fixture(scope="module")
def hostile(outcome: MakeOutcome, make_evidence: MakeEvidence) -> Evidence:
    """Labels and a description that would be markup, and the longest name of a site."""
    result, job = outcome(classes=HOSTILE, steps={"northgate": 48})
    about = job.job.model_copy(update={"description": "<b>bold</b>\n\x1b[2J" + "W" * 500})
    data = job.model_dump(mode="json", exclude_none=True)
    data["job"]["description"] = about.description
    bent = Job.model_validate(data)
    copied = result.model_copy(update={"job_sha256": bent.sha256})
    return make_evidence(copied, bent)


def test_names_from_outside_are_words_and_never_markup(hostile: Evidence) -> None:
    made = write_documents(hostile)
    for name, data in made.items():
        if name.endswith(".html"):
            assert not {"script", "img", "b"} & {tag for tag, _ in Outline(data).tags}, name
            assert "\u202e" not in data.decode()
            assert "\x1b" not in data.decode()
    card = Outline(made["sites/riverside/data-card.html"]).text
    assert '<script>alert("x")</script>' in card
    assert r"\u202ergb" in card
    printed = text_of(made["certificate.pdf"])
    assert "<b>bold</b>" in printed
    assert "WWWWW" in printed


def test_nothing_leaves_a_printed_page() -> None:
    """Words that no line can hold are broken: poppler finds every letter within the margins."""
    if which("pdftotext") is None:
        pytest.skip("needs pdftotext (poppler-utils)")
    longest = "M" * 400
    sheet = Sheet(
        kind="test", title=longest[:63], facts=(longest,), figures=(), foot="foot",
        made_at="2026-11-28T01:00:00Z", sections=(
            section(
                "Long", Prose(longest), Terms((("term", longest), (longest[:80], "value"))),
                Table(("head", "b"), ((longest[:200], Code("f" * 128)),), frozenset(), (40, 130)),
            ),
        ),
    )  # fmt: skip
    done = subprocess.run(
        ["pdftotext", "-bbox", "-", "-"], input=pdf_of(sheet), capture_output=True, check=True
    )
    edges = [float(x) for x in re.findall(r'xMax="([\d.]+)"', done.stdout.decode())]
    assert len(edges) > 30
    assert max(edges) < (210 - 18) / 25.4 * 72
    assert done.stdout.decode().count("M") >= 3 * 400


def test_characters_that_the_face_lacks_are_written_by_number() -> None:
    sheet = Sheet(
        kind="test", title="病院 Ελλάδα Größe", facts=(), figures=(), sections=(), foot="",
        made_at="2026-11-28T01:00:00Z",
    )  # fmt: skip
    printed = text_of(pdf_of(sheet))
    assert "U+75C5U+9662 Ελλάδα Größe" in printed
    assert "病院 Ελλάδα Größe" in Outline(html_of(sheet)).text


def test_control_characters_are_written_out() -> None:
    assert shown("a\u202eb\x1b[2J\nc\td") == r"a\u202eb\x1b[2J c d"
    assert shown("ε\u00a0=\u00a03") == "ε\u00a0=\u00a03"


@pytest.mark.slow
def test_the_same_evidence_gives_the_same_bytes(evidence: Evidence) -> None:
    spent = spendings(evidence)
    sheets = [
        certificate_sheet(certificate_of(evidence, spent, [], site="northgate")) for _ in range(2)
    ]
    assert pdf_of(sheets[0]) == pdf_of(sheets[1])
    assert b"/CreationDate (D:20261128010000Z" in pdf_of(sheets[0])
    assert bill_of_materials(evidence.made_at) == bill_of_materials(evidence.made_at)


def test_the_bill_of_materials_keeps_to_cyclonedx_and_names_what_is_installed() -> None:
    data = bill_of_materials("2026-11-28T01:00:00Z")
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(data.decode()) is None
    bill = json.loads(data)
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    found = {part["name"]: part["version"] for part in bill["components"]}
    for name in ("torch", "opacus", "dp-accounting", "flwr", "cryptography", "sympy"):
        assert found[name] == version(name)
    assert not {"pytest", "hypothesis", "ray"} & found.keys()
    needs = {row["ref"]: row.get("dependsOn", []) for row in bill["dependencies"]}
    ours = f"veiltune@{version('veiltune')}"
    assert f"opacus@{version('opacus')}" in needs[ours]


def test_the_cover_is_one_printed_page_that_leads_to_what_is_there(
    documents: dict[str, bytes],
) -> None:
    assert text_of(documents["index.pdf"]).endswith(" 1/1")
    links = [a["href"] for tag, a in Outline(documents["index.html"]).tags if tag == "a"]
    assert {"certificate.html", "sites/northgate/certificate.html", "../job.json"} <= {*links}


@pytest.mark.slow
def test_many_sites_leave_the_cover_on_one_page() -> None:
    story = told(tuple(f"site-{n:02}" for n in range(11)), 1)
    evidence = story.evidence()
    cover = sheets(evidence, spendings(evidence), {})["index"]
    assert "And 3 sites that spent no more." in Outline(html_of(cover)).text
    assert text_of(pdf_of(cover)).endswith(" 1/1")
    assert "protects one (all records of one patient_id)" in text_of(pdf_of(cover))


def test_the_cover_maps_and_claims_nothing(documents: dict[str, bytes]) -> None:
    cover = Outline(documents["index.html"]).text
    for words in ("HIPAA", "35(7)(c)", "12(1)", "SR 11-7", "No compliance is claimed"):
        assert words in cover
    assert not re.search(r"\b(is|are|fully) compliant\b", cover)


def test_refusals_name_who_was_silent_without_a_reason(evidence: Evidence) -> None:
    first = evidence.receipts[0]
    receipt = first.receipt
    bent = receipt.model_copy(
        update={
            "charges": {s: c for s, c in receipt.charges.items() if s != "riverside"},
            "replies": tuple(r for r in receipt.replies if r.site != "riverside"),
        }
    )
    silent = first.model_copy(update={"receipt": bent})
    made = write_documents(
        replace(evidence, receipts=(silent, *evidence.receipts[1:]), is_simulation=True)
    )
    page = Outline(made["refusals.html"]).text
    assert "1riversideasked, no update in time; counted as charged" in page
    assert "1 refusal" in page


def test_the_data_card_holds_what_was_declared(
    documents: dict[str, bytes], evidence: Evidence
) -> None:
    card = json.loads(documents["sites/northgate/data-card.json"])
    declared = evidence.job.job.data
    assert card["declared_population"] == declared.population["northgate"] == 1350
    assert card["labels"] == list(declared.labels)
    assert card["epsilon"] == next(
        s.epsilon for s in evidence.result.sites if s.name == "northgate"
    )
