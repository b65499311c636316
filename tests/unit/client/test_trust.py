"""What a site takes of what the server shows, and that it refuses the rest."""

import datetime as dt
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from structlog.testing import capture_logs

from client import policy, trust
from client.config import SiteHome
from client.identity import read_identity
from client.session import Turned
from client.trust import take
from client.upkeep import Upkeep
from common import pki
from common.errors import LinkDown, Refusal
from common.job import SignedJob
from common.link import federation_pb2 as wire
from common.signed import Handover, Retirement, SignedRoster, sign

NOW = dt.datetime.now(dt.UTC)


class Homes(Protocol):
    """The fixture of that name."""

    @property
    def loopback(self) -> "Authorities": ...
    def load(self, site: str = "A", **options: object) -> SiteHome: ...


class Authorities(Protocol):
    @property
    def root(self) -> pki.Credential: ...
    @property
    def intermediate(self) -> pki.Credential: ...


def sha256_of(root: pki.Credential) -> str:
    return pki.fingerprint(root.certificate)


def roster(root: pki.Credential, sequence: int, *sites: str, seconds: int = 0) -> bytes:
    document = SignedRoster(
        root=sha256_of(root),
        federation="loopback",
        sequence=sequence,
        signed_at=dt.datetime(2026, 11, 25, 13, 0, seconds, tzinfo=dt.UTC),
        sites=dict.fromkeys(sites or ("A", "B"), ("ab" * 32,)),
    )
    return sign(document, root)


def handover(old: pki.Credential, successor: bytes) -> bytes:
    document = Handover(root=sha256_of(old), federation="x", successor=successor.decode())
    return sign(document, old)


def retirement(new: pki.Credential, old: pki.Credential) -> bytes:
    document = Retirement(root=sha256_of(new), federation="x", retired=sha256_of(old))
    return sign(document, new)


def roots(home: SiteHome) -> list[str]:
    pem = (home.folder / "pki/root.pem").read_bytes()
    return [pki.fingerprint(root) for root in pki.load_certificates(pem)]


# --- who takes part -----------------------------------------------------------------------------


def test_a_newer_roster_is_taken_and_the_same_again_is_no_change(homes: Homes) -> None:
    home, root = homes.load(), homes.loopback.root
    for sequence in (3, 3, 4, 9):
        take(home, wire.Trust(roster=roster(root, sequence)))
        found = trust.read_roster(home)
        assert found is not None
        assert (found.sequence, sorted(found.sites)) == (sequence, ["A", "B"])


@pytest.mark.parametrize("case", ["lower", "same number", "none", "another root", "edited"])
def test_a_roster_that_must_be_refused_leaves_the_one_kept(homes: Homes, case: str) -> None:
    home, root = homes.load(), homes.loopback.root
    kept = roster(root, 5)
    take(home, wire.Trust(roster=kept))
    shown, words = {
        "lower": (roster(root, 4, "A"), "at least 5, got 4"),
        "same number": (roster(root, 5, "A"), "roster 5 must be the one kept here"),
        "none": (b"", "must show a roster from 5 on, got none"),
        "another root": (roster(pki.create_root("loopback"), 6), "by a root that is trusted"),
        "edited": (roster(root, 6).replace(b'"sequence":6', b'"sequence":7'), "edited after"),
    }[case]
    with pytest.raises(Refusal, match=words):
        take(home, wire.Trust(roster=shown))
    assert (home.folder / "roster.signed").read_bytes() == kept


def test_the_intermediate_cannot_sign_a_roster(homes: Homes) -> None:
    home, above = homes.load(), homes.loopback.intermediate
    with pytest.raises(Refusal, match="by a root that is trusted"):
        take(home, wire.Trust(roster=roster(above, 1)))
    assert trust.read_roster(home) is None


def test_a_site_says_when_the_roster_lacks_its_key(homes: Homes) -> None:
    home, root = homes.load(), homes.loopback.root
    with capture_logs() as events:
        take(home, wire.Trust(roster=roster(root, 1)))
    assert [e["event"] for e in events if e["log_level"] == "warning"] == [
        "signed roster lacks this site or its key"
    ]
    document = SignedRoster(
        root=sha256_of(root),
        federation="x",
        sequence=2,
        signed_at=NOW,
        sites={"A": (trust.own_key(home),)},
    )
    with capture_logs() as events:
        take(home, wire.Trust(roster=sign(document, root)))
    assert not [e for e in events if e["log_level"] == "warning"]


def test_a_job_may_bring_in_nobody_whom_the_root_does_not_know(
    homes: Homes, manifest: Callable[..., SignedJob]
) -> None:
    home, root, job = homes.load(), homes.loopback.root, manifest().job

    def ruling() -> list[policy.Ruling]:
        return [found for found in policy.rulings(job, home) if found.rule == "roster.signed"]

    assert ruling() == []  # the root has said nothing yet
    take(home, wire.Trust(roster=roster(root, 1, "A", "B", "C")))
    assert [found.is_met for found in ruling()] == [True]
    take(home, wire.Trust(roster=roster(root, 2, "A")))
    (found,) = ruling()
    assert found.words == "job's sites must be on the roster that the root signed (2), got B"
    (home.folder / "roster.signed").write_text("{}")
    assert [found.is_met for found in ruling()] == [False]


# --- another root -------------------------------------------------------------------------------


def test_a_root_is_trusted_by_the_word_of_the_one_before_and_stays_beside_it(
    homes: Homes,
) -> None:
    home, old, new = homes.load(), homes.loopback.root, pki.create_root("loopback")
    for _ in range(2):
        take(home, wire.Trust(handover=handover(old, new.certificate)))
        assert roots(home) == [sha256_of(new), sha256_of(old)]
    read_identity(home).check()
    take(home, wire.Trust(handover=handover(old, new.certificate), roster=roster(new, 1)))


@pytest.mark.parametrize(
    "case",
    [
        "another root's",
        "of itself",
        "edited",
        "a leaf",
        "no authority",
        "expired",
        "two",
        "a third",
    ],
)
def test_a_handover_that_must_be_refused_changes_no_root(homes: Homes, case: str) -> None:
    home, old, new = homes.load(), homes.loopback.root, pki.create_root("loopback")
    stranger = pki.create_root("loopback")
    leaf = pki.issue_site(pki.new_site_key_and_csr("A")[1], homes.loopback.intermediate)
    shown = {
        "another root's": handover(stranger, new.certificate),
        "of itself": handover(new, new.certificate),
        "edited": edited(handover(old, new.certificate), stranger.certificate),
        "a leaf": handover(old, leaf),
        "no authority": handover(old, self_signed_leaf()),
        "expired": handover(
            old, pki.create_root("x", now=NOW - dt.timedelta(days=3651)).certificate
        ),
        "two": handover(old, new.certificate + stranger.certificate),
        "a third": handover(old, stranger.certificate),
    }[case]
    before = [sha256_of(old)]
    if case == "a third":
        take(home, wire.Trust(handover=handover(old, new.certificate)))
        before.insert(0, sha256_of(new))
    with pytest.raises(Refusal):
        take(home, wire.Trust(handover=shown))
    assert roots(home) == before


def self_signed_leaf() -> bytes:
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([])
    builder = x509.CertificateBuilder(name, name, key.public_key(), 7)
    builder = builder.not_valid_before(NOW).not_valid_after(NOW + dt.timedelta(days=9))
    builder = builder.add_extension(x509.BasicConstraints(False, None), critical=True)
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)


def test_a_next_root_is_not_looked_at_before_its_signature(
    homes: Homes, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, stranger = homes.load(), pki.create_root("stranger")
    looked: list[object] = []
    monkeypatch.setattr("client.trust._require_root", lambda *given: looked.append(given))
    with pytest.raises(Refusal, match="by a root that is trusted"):
        take(home, wire.Trust(handover=handover(stranger, pki.create_root("x").certificate)))
    assert looked == []


def edited(signed: bytes, successor: bytes) -> bytes:
    content = json.loads(signed)
    content["document"]["successor"] = successor.decode()
    return json.dumps(content).encode()


def test_a_root_retires_by_its_successor_s_word_once_the_site_has_gone_over(
    homes: Homes,
) -> None:
    home, old, new = homes.load(), homes.loopback.root, pki.create_root("loopback")
    first = handover(old, new.certificate)
    take(home, wire.Trust(handover=first))
    shown = wire.Trust(handover=first, retirement=retirement(new, old))
    take(home, shown)
    assert roots(home) == [sha256_of(new), sha256_of(old)]  # its certificate is the old one's
    go_over(home, new)
    take(home, shown)
    assert roots(home) == [sha256_of(new)]
    take(home, shown)  # again: nothing to do, and nothing to complain of
    with pytest.raises(Refusal, match="by a root that is trusted"):
        take(home, wire.Trust(handover=first, roster=roster(old, 1)))


def go_over(home: SiteHome, new: pki.Credential) -> None:
    csr = pki.create_csr("A", read_identity(home).key)
    chain = pki.issue_site(csr, pki.create_intermediate(new))
    (home.folder / "pki/site.pem").write_bytes(chain)


def test_a_retirement_by_the_old_root_or_of_the_last_one_is_refused(homes: Homes) -> None:
    home, old, new = homes.load(), homes.loopback.root, pki.create_root("loopback")
    with pytest.raises(Refusal, match="last root must not be retired"):
        take(home, wire.Trust(retirement=retirement(old, old)))
    take(home, wire.Trust(handover=handover(old, new.certificate)))
    go_over(home, new)
    with pytest.raises(Refusal, match="by a root that is trusted"):
        take(home, wire.Trust(retirement=retirement(old, old)))
    assert len(roots(home)) == 2


# --- failing closed -----------------------------------------------------------------------------


def test_a_site_that_is_shown_what_it_refuses_uses_no_link_until_it_is_shown_better(
    homes: Homes, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, root = homes.load(), homes.loopback.root
    take(home, wire.Trust(roster=roster(root, 5)))
    upkeep = Upkeep(home, read_identity(home))
    shown = wire.Trust(roster=roster(root, 4))
    monkeypatch.setattr(Upkeep, "_documents", lambda self: shown)
    with pytest.raises(LinkDown, match="has yet to show"):
        upkeep.current()
    upkeep.tick()
    with pytest.raises(LinkDown, match="takes part in nothing: roster's sequence number must be"):
        upkeep.current()
    shown = wire.Trust(roster=roster(root, 6))
    upkeep._ask_at = 0.0
    upkeep.tick()
    assert upkeep.current().site == "A"


def test_a_server_that_turns_the_question_away_is_refused_where_a_roster_is_kept(
    homes: Homes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def turned(upkeep: Upkeep) -> wire.Trust:
        raise Turned(wire.Refusal.UNSPECIFIED, "not now")

    monkeypatch.setattr(Upkeep, "_documents", turned)
    home = homes.load()
    upkeep = Upkeep(home, read_identity(home))
    upkeep.tick()
    assert upkeep.current().site == "A"  # its session will find the same
    take(home, wire.Trust(roster=roster(homes.loopback.root, 5)))
    upkeep = Upkeep(home, read_identity(home))
    upkeep.tick()
    with pytest.raises(LinkDown, match=r"must show the root's documents, got: .*not now"):
        upkeep.current()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_no_session_begins_once_nobody_checks_what_the_root_signs(
    homes: Homes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(upkeep: Upkeep) -> wire.Trust:
        raise ZeroDivisionError

    monkeypatch.setattr(Upkeep, "_documents", breaks)
    home, stop = homes.load(), threading.Event()
    upkeep = Upkeep(home, read_identity(home))
    with pytest.raises(ZeroDivisionError):
        upkeep.run(stop)
    with pytest.raises(LinkDown, match="the thread that looks after certificates has ended"):
        upkeep.current()


def test_a_server_that_cannot_be_asked_is_left_to_the_session(homes: Homes) -> None:
    home = homes.load(port=1)
    upkeep = Upkeep(home, read_identity(home))
    upkeep.tick()
    assert upkeep.current().server == "127.0.0.1:1"


def test_a_root_file_that_is_gone_changes_nothing_of_a_running_site(
    homes: Homes, tmp_path: Path
) -> None:
    home = homes.load(port=1)
    upkeep = Upkeep(home, read_identity(home))
    upkeep._has_asked.set()
    upkeep._ask_at = 1e18
    before = upkeep.current()
    (home.folder / "pki/root.pem").rename(tmp_path / "aside")
    with capture_logs() as events:
        upkeep.tick()
        upkeep.tick()
    assert upkeep.current() is before
    assert [e["event"] for e in events] == ["changed certificate not used"]
