"""Every value of a bundle's documents put wrong, one at a time, and signed again by the server.

Whatever stands there, verify answers with claims, and with no exception; it passes only where the
table below says that nobody but the server answers for the value. Not covered: two values at once.
"""

import contextlib
import copy
import hashlib
import json
import os
import random
import re
from collections.abc import Callable, Iterator
from functools import lru_cache, reduce
from typing import Any

import pytest
import rfc8785
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from common import pki
from common.audit import printed
from common.audit.certificate import read_certificate
from common.audit.certificate import to_json as certificate_json
from common.audit.certificate_parts import Audit
from common.audit.certification import certificate_of
from common.audit.data_card import data_card_json
from common.audit.evidence import MANIFEST, SEAL, SEAL_DOMAIN, write_bundle
from common.audit.spending import spendings
from common.audit.verify import verify
from common.documents.certificate_sheet import certificate_sheet
from common.documents.paper import pdf_of
from common.documents.screen import html_of
from common.errors import InvalidInput
from common.stored_zip import pack, unpack
from tests.planted_evidence import audit_of
from tests.reference_verifier import fault_of
from tests.story import Story, authorities, told_with_counts

CERTIFICATE = "documents/certificate.json"
Tree = Any  # what JSON can hold
_GONE: Tree = object()


def any_other(_: "Server", __: Tree, ___: Tree) -> bool:
    """Nobody but the server answers for the value."""
    return True


def more(_: "Server", was: Tree, now: Tree) -> bool:
    """Who claims to have spent more is not disputed."""
    return isinstance(now, float) and now > was


def gone(_: "Server", __: Tree, now: Tree) -> bool:
    """Nothing is claimed any more."""
    return now is _GONE


def in_order(server: "Server", was: str, now: Tree) -> bool:
    """Closed at another time that is still after the round before and before what follows."""
    rounds = [data for name, data in sorted(server.files.items()) if name.startswith("rounds/")]
    moments = [json.loads(data)["receipt"]["closed_at"] for data in rounds]
    at, moments = (
        moments.index(was) + 1,
        ["", *moments, json.loads(server.files[MANIFEST])["made_at"]],
    )
    return isinstance(now, str) and moments[at - 1] <= now <= moments[at + 1]


def fewer_replies(_: "Server", was: list[Tree], now: Tree) -> bool:
    """Some of those that came, in any order."""
    rest = list(now) if isinstance(now, list) else []
    return bool(rest) and len(rest) <= len(was) and all(one in was for one in rest)


def refused(_: "Server", was: Tree, now: Tree) -> bool:
    """An update that came and did not count."""
    return (was, now) == (True, False)


def another_hash(_: "Server", __: Tree, now: Tree) -> bool:
    """Of an update that only its site can compare."""
    return isinstance(now, str) and re.fullmatch("[0-9a-f]{64}", now) is not None


# What the server alone answers for, or what says nothing: where it is, and what may stand there.
FREE: tuple[tuple[str, str, Callable[["Server", Tree, Tree], bool]], ...] = (
    ("result.json", r"rounds/\d+/(accuracy|macro_f1|bytes_(up|down)|seconds)|seconds", any_other),
    ("result.json", r"rounds/\d+/epsilon", more),
    ("result.json", r"hold_out", gone),
    ("rounds/", r"closed_at", in_order),
    ("rounds/", r"replies", fewer_replies),
    ("rounds/", r"replies/\d+", gone),
    ("rounds/", r"replies/\d+/accepted", refused),
    ("rounds/", r"replies/\d+/payload_sha256", another_hash),
    (CERTIFICATE, r"audits|audits/0|audits/0/(lower_bound|significance|runs)", any_other),
)


draw = lru_cache(maxsize=8)(pdf_of)


@pytest.fixture(scope="module", autouse=True)
def _drawn_once() -> Iterator[None]:
    """A sheet that is the same as before is not drawn again, for the sake of time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(printed, "pdf_of", draw)
        yield


@pytest.fixture(scope="module")
def story() -> Story:
    return told_with_counts()


@pytest.fixture(scope="module")
def files(story: Story) -> dict[str, bytes]:
    evidence = story.evidence()
    audit = Audit.model_validate(audit_of(story))
    documents = {
        "certificate.json": certificate_json(
            certificate_of(evidence, spendings(evidence), [audit])
        ),
        "sites/A/data-card.json": data_card_json(evidence, evidence.result.sites[0]),
    }
    sheet = certificate_sheet(read_certificate(documents["certificate.json"]))
    documents |= {"certificate.html": html_of(sheet), "certificate.pdf": pdf_of(sheet)}
    return unpack(write_bundle(evidence, documents, story.by.server), "bundle")


def canonical(value: object) -> bytes:
    """RFC 8785 where there is such a form, and something like it where there is none."""
    try:
        return rfc8785.dumps(value)  # type: ignore[arg-type]
    except rfc8785.CanonicalizationError:
        return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def values(tree: Tree, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    yield path, tree
    parts = (
        tree.items()
        if isinstance(tree, dict)
        else enumerate(tree)
        if isinstance(tree, list)
        else ()
    )
    for key, part in parts:
        yield from values(part, (*path, key))


def others(value: Tree) -> Iterator[Any]:
    """What a value of this kind might be changed into."""
    yield from (_GONE, None)
    if isinstance(value, bool):
        yield not value
    elif isinstance(value, int):
        yield from (value + 1, value - 1, -1, 10**30, value + 0.5, str(value), 2**53, 2**63)
    elif isinstance(value, float):
        yield from (value / 2, value * 2, -value, 0.0, 1e308, 5e-324, "x", value * 1.005)
    elif isinstance(value, str):
        yield from ("", value[::-1], value.upper(), "é\u202e", "\ud800", "A" * 5000, 5, [value])
        if re.fullmatch(r"\d{4}-.*Z", value):
            yield from ("2026-02-31T10:00:00Z", "2026-11-20T08:00:00Z", "2026-11-25T10:00:00Z")
            yield from (value[:-3] + "30Z", value[:-6] + "31:00Z")
    elif isinstance(value, list):
        yield from ([], value[:-1], [*value, *value[:1]], value[::-1], {})
    elif isinstance(value, dict):
        yield from ({}, [], value | {"extra": 1}, dict(list(value.items())[:1]))


def put(tree: Tree, path: tuple[Any, ...], value: Tree) -> Tree:
    if not path:
        return {} if value is _GONE else value
    tree = copy.deepcopy(tree)
    place = tree
    for key in path[:-1]:
        place = place[key]
    if value is _GONE:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return tree


def pages_of(certificate: bytes) -> dict[str, bytes]:
    """What stands beside a certificate, drawn from it, if it is one."""
    with contextlib.suppress(InvalidInput):
        sheet = certificate_sheet(read_certificate(certificate))
        beside = CERTIFICATE.removesuffix("json")
        return {f"{beside}html": html_of(sheet), f"{beside}pdf": draw(sheet)}
    return {}


class Server:
    """Signs whatever it is given, as a server with other software could."""

    def __init__(self, story: Story, files: dict[str, bytes]) -> None:
        self.story, self.files = story, files
        self._key = pki.load_key(story.by.server.key)
        self._id = json.loads(files[CERTIFICATE])["id"]

    def sign(self, message: bytes) -> str:
        return self._key.sign(message, ec.ECDSA(hashes.SHA256())).hex()

    def bundle(self, name: str, tree: Tree) -> bytes:
        """The bundle with another document in place of ``name``."""
        files = dict(self.files)
        if name.startswith("rounds/"):
            self._rechain(files, name, tree)
        elif name.startswith("documents/") or name == "result.json":
            if name == CERTIFICATE and isinstance(tree, dict) and tree.get("id") == self._id:
                content = canonical({k: v for k, v in tree.items() if k != "id"})
                digest = hashlib.sha256(content).hexdigest()
                tree = tree | {"id": f"VT-{digest[:4]}-{digest[4:8]}-{digest[8:12]}"}
                files |= pages_of(canonical(tree))
            said = json.dumps(tree, indent=2, ensure_ascii=False) + "\n"
            files[name] = said.encode("utf-8", "surrogatepass")
        elif name != MANIFEST:
            files[name] = canonical(tree)
        return self.sealed(files, tree if name == MANIFEST else _GONE)

    def _rechain(self, files: dict[str, bytes], name: str, tree: Tree) -> None:
        before = ""
        for each in sorted(each for each in files if each.startswith("rounds/")):
            signed = json.loads(files[each])
            receipt = tree if each == name else signed["receipt"]
            if isinstance(receipt, dict) and receipt.get("before") == signed["receipt"]["before"]:
                receipt = receipt | {"before": before}
            message = b"veiltune round receipt v1\n" + canonical(receipt)
            files[each] = canonical(signed | {"receipt": receipt, "signature": self.sign(message)})
            before = hashlib.sha256(files[each]).hexdigest()

    def sealed(self, files: dict[str, bytes], manifest: Tree = _GONE) -> bytes:
        inner = {name: data for name, data in files.items() if name not in (MANIFEST, SEAL)}
        named = {name: hashlib.sha256(data).hexdigest() for name, data in inner.items()}
        if manifest is _GONE:
            manifest = json.loads(files[MANIFEST]) | {"files": named}
        said = canonical(manifest)
        chain = self.story.by.server.certificate.decode()
        seal = {"chain": chain, "signature": self.sign(SEAL_DOMAIN + said)}
        return pack(inner | {MANIFEST: said, SEAL: canonical(seal)})


def changes(files: dict[str, bytes]) -> Iterator[tuple[str, tuple[Any, ...], Any]]:
    """(file, path, another value), for every value of every document."""
    for name in sorted(files):
        if not name.endswith(".json"):
            continue
        tree = json.loads(files[name])
        tree = tree["receipt"] if name.startswith("rounds/") else tree
        for path, value in values(tree):
            if name == MANIFEST and path[:1] == ("files",):
                continue
            for other in others(value):
                if other is _GONE or canonical(other) != canonical(value):
                    yield name, path, other


def check(server: Server, name: str, path: tuple[Any, ...], other: Tree) -> str:
    """What is wrong with verify's answer; empty for nothing."""
    tree = json.loads(server.files[name])
    tree = tree["receipt"] if name.startswith("rounds/") else tree
    data = server.bundle(name, put(tree, path, other))
    root = server.story.by.root.certificate
    where = "/".join(map(str, path))
    if verify(data, root).failed:
        return ""
    was = reduce(lambda part, key: part[key], path, tree)
    for file, rule, may_be in FREE:
        if name.startswith(file) and re.fullmatch(rule, where) and may_be(server, was, other):
            return ""
    return f"{name} {where} {other!r:.60}: passed; the reference: {fault_of(data, root)!r}"


@pytest.fixture(scope="module")
def server(story: Story, files: dict[str, bytes]) -> Server:
    """The bundle as it is holds for both verifiers."""
    data, root = pack(files), story.by.root.certificate
    assert not verify(data, root).failed
    assert fault_of(data, root) == ""
    return Server(story, files)


def test_some_values_of_each_document_put_wrong_are_answered_with_claims(server: Server) -> None:
    draw_some, of = random.Random(31), [*changes(server.files)]
    documents = {name for name, _, _ in of}
    some = [
        change
        for name in sorted(documents)
        for change in draw_some.sample([one for one in of if one[0] == name], 4)
    ]
    assert {CERTIFICATE, "job.json", "result.json", MANIFEST} < documents
    assert [words for change in some if (words := check(server, *change))] == []


@pytest.mark.slow
def test_a_value_put_wrong_is_answered_with_claims(server: Server) -> None:
    some = random.Random(23).sample(list(changes(server.files)), 300)
    assert [words for change in some if (words := check(server, *change))] == []


@pytest.mark.slow
@pytest.mark.timeout(1800)  # each certificate that can be read is drawn anew
def test_many_values_put_wrong_are_answered_with_claims(server: Server) -> None:
    """A quarter of all; ``VEILTUNE_EVERY_VALUE=1`` tries every one, in 8 minutes."""
    every = list(changes(server.files))
    assert len(every) > 5000
    if not os.environ.get("VEILTUNE_EVERY_VALUE"):
        every = random.Random(29).sample(every, len(every) // 4)
    assert [words for change in every if (words := check(server, *change))] == []


@pytest.mark.parametrize(
    ("name", "path", "other"),
    [
        ("job.json", ("job", "evaluation", "text"), "\ud800"),
        ("job.json", ("job", "data", "population", "A"), 10**30),
        ("result.json", ("privacy", "noise_multiplier"), 1e308),
        ("result.json", ("privacy", "metrics_noise_multiplier"), 1e308),
        ("result.json", ("rounds", 0, "bytes_up"), 10**30),
        (CERTIFICATE, ("sites", 0, "population"), 10**30),
        (CERTIFICATE, ("promise", "unit_cap"), 10**20),
        (CERTIFICATE, ("audits", 0, "runs"), 10**30),
        (CERTIFICATE, ("job", "description"), "\ud800"),
        ("rounds/00001.json", ("charges", "A", "row", "body"), "\ud800"),
        (MANIFEST, ("made_at",), "2026-02-30T10:00:00Z"),
        (MANIFEST, ("made_at",), "2026-13-45T10:00:00Z"),
        (MANIFEST, ("made_at",), "0000-01-01T00:00:00Z"),
        (CERTIFICATE, ("made_at",), "2026-02-30T10:00:00Z"),
        ("rounds/00001.json", ("closed_at",), "2026-11-20T10:00:60Z"),
    ],
)
def test_what_no_reader_may_hold_fails_in_words(
    server: Server, name: str, path: tuple[Any, ...], other: object
) -> None:
    tree = json.loads(server.files[name])
    tree = tree["receipt"] if name.startswith("rounds/") else tree
    assert verify(server.bundle(name, put(tree, path, other)), None).failed


@pytest.mark.parametrize(
    ("what", "make"),
    [
        ("empty", lambda _: b""),
        ("other ends of lines", lambda pem: pem.replace(b"\n", b"\r\n")),
        ("twice", lambda pem: pem + pem),
        ("words before it", lambda pem: b"hi\n" + pem),
        ("no ASCII", lambda pem: b"\xff" + pem),
        ("the leaf alone", lambda pem: pem.split(b"-----END")[0] + b"-----END CERTIFICATE-----\n"),
        ("a root beside it", lambda pem: pem + authorities().root.certificate),
        ("half of it", lambda pem: pem[: len(pem) // 2]),
    ],
    ids=lambda given: given if isinstance(given, str) else "",
)
def test_other_certificates_are_answered_with_claims(
    server: Server, what: str, make: Callable[[bytes], bytes]
) -> None:
    name = "sites/A/certificate.pem"
    files = server.files | {name: make(server.files[name])}
    data, root = server.sealed(files), server.story.by.root.certificate
    passed = not verify(data, root).failed
    assert passed == (fault_of(data, root) == "") == (what == "twice")
