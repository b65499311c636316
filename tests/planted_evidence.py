"""Faults planted in a bundle of evidence, and the claim that must catch each.

Whoever plants one has the keys that such a person would have: a server its own, a site its own,
somebody else none. ``docs/evidence.md`` shows this table.
"""

import hashlib
import io
import json
import re
import stat
import struct
import sys
import zipfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import safetensors.numpy
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from common import pki
from common.audit.certificate import id_of, identified, read_certificate
from common.audit.certificate import to_json as to_json_certificate
from common.audit.certificate_parts import Audit
from common.audit.certification import certificate_of
from common.audit.claims import Status
from common.audit.data_card import data_card_json
from common.audit.evidence import DOCUMENTS, MANIFEST, RESULT, SEAL, Manifest, seal, write_bundle
from common.audit.spending import spendings
from common.documents.certificate_sheet import certificate_sheet
from common.documents.pages import sheets
from common.documents.paper import PRODUCER, pdf_of
from common.documents.screen import html_of
from common.job import sign_job
from common.keys import public_key_sha256
from common.measured import MetricsResult
from common.privacy.charge import HeadOf, SignedCharge
from common.privacy.entries import Closed
from common.privacy.event import GaussianSteps
from common.privacy.ledger import Chain
from common.receipt import Reply, to_bytes
from common.result import PrivacyStatement, Result, privacy_statement, to_json
from common.signed import SignedRoster, read
from common.stored_zip import pack, unpack
from tests.other_print import anew, bursting, doubled, misnumbered, with_streams
from tests.story import (
    AT,
    BEFORE,
    COUNTS,
    Ledger,
    Story,
    authorities,
    begin,
    digest,
    make_job,
    told,
    told_with_counts,
    weights,
)

BYTES, SIGNED, LEDGER, CLAIM = "the file", "the server's word", "a site's ledger", "what is claimed"


@dataclass(frozen=True)
class Planted:
    """``make`` gives the bundle and the root (PEM) that an auditor has, with the adapter's file.

    ``status`` is what becomes of the claim that is ``caught``: some faults leave it open.
    """

    part: str
    fault: str
    caught: str
    make: Callable[[], tuple[bytes, bytes]]
    adapter: bytes | None = None
    status: Status = "fail"

    def __str__(self) -> str:
        """A test's name."""
        return self.fault


PLANTED: list[Planted] = []
Made = bytes | tuple[bytes, bytes]


def plant(
    part: str, fault: str, caught: str, adapter: bytes | None = None, status: Status = "fail"
) -> Callable[[Callable[[Story], Made]], None]:
    """Enter a fault into the table; the function changes a whole story."""

    def enter(change: Callable[[Story], Made]) -> None:
        def make() -> tuple[bytes, bytes]:
            story = told()
            made = change(story)
            return made if isinstance(made, tuple) else (made, story.by.root.certificate)

        PLANTED.append(Planted(part, fault, caught, make, adapter, status))

    return enter


def rezipped(data: bytes, change: Callable[[zipfile.ZipFile, dict[str, bytes]], None]) -> bytes:
    """The same files in another ZIP."""
    buffer, files = io.BytesIO(), unpack(data, "bundle")
    with zipfile.ZipFile(buffer, "w") as archive:
        change(archive, files)
    return buffer.getvalue()


def member(name: str, mode: int = stat.S_IFREG | 0o600) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.create_system, info.external_attr = 3, mode << 16
    return info


@plant(BYTES, "a byte after its end", "container")
def _(story: Story) -> Made:
    return story.bundle() + b"\0"


@plant(BYTES, "bytes before its beginning", "container")
def _(story: Story) -> Made:
    return b"MZ" + story.bundle()


@plant(BYTES, "a ZIP comment", "container")
def _(story: Story) -> Made:
    buffer = io.BytesIO(story.bundle())
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.comment = b"epsilon 1"
    return buffer.getvalue()


@plant(BYTES, "a second result.json beside the first", "container")
def _(story: Story) -> Made:
    def twice(archive: zipfile.ZipFile, files: dict[str, bytes]) -> None:
        for name in sorted([*files, RESULT]):
            archive.writestr(member(name), files[name])

    return rezipped(story.bundle(), twice)


@plant(BYTES, "a compressed member", "container")
def _(story: Story) -> Made:
    def packed(archive: zipfile.ZipFile, files: dict[str, bytes]) -> None:
        for name in sorted(files):
            how = zipfile.ZIP_DEFLATED if name == RESULT else zipfile.ZIP_STORED
            archive.writestr(member(name), files[name], compress_type=how)

    return rezipped(story.bundle(), packed)


@plant(BYTES, "a symbolic link in a file's place", "container")
def _(story: Story) -> Made:
    def linked(archive: zipfile.ZipFile, files: dict[str, bytes]) -> None:
        for name in sorted(files):
            mode = stat.S_IFLNK | 0o777 if name == RESULT else stat.S_IFREG | 0o600
            archive.writestr(member(name, mode), files[name])

    return rezipped(story.bundle(), linked)


@plant(BYTES, "members in another order", "container")
def _(story: Story) -> Made:
    def turned(archive: zipfile.ZipFile, files: dict[str, bytes]) -> None:
        for name in sorted(files, reverse=True):
            archive.writestr(member(name), files[name])

    return rezipped(story.bundle(), turned)


@plant(BYTES, "a member that leads out of its folder", "container")
def _(story: Story) -> Made:
    def outside(archive: zipfile.ZipFile, files: dict[str, bytes]) -> None:
        for name in sorted([*files, "../root.pem"]):
            archive.writestr(member(name), files.get(name, b"x"))

    return rezipped(story.bundle(), outside)


@plant(BYTES, "a file that the manifest does not name", "files")
def _(story: Story) -> Made:
    return pack(unpack(story.bundle(), "bundle") | {"documents/certificate.html": b"epsilon 1"})


@plant(BYTES, "a round's file taken out", "files")
def _(story: Story) -> Made:
    files = unpack(story.bundle(), "bundle")
    del files["rounds/00002.json"]
    return pack(files)


@plant(BYTES, "half the epsilon in result.json", "files")
def _(story: Story) -> Made:
    return pack(unpack(story.bundle(), "bundle") | {RESULT: to_json(halved(story)).encode()})


@plant(BYTES, "half the epsilon, and its hash in the manifest", "manifest")
def _(story: Story) -> Made:
    files = unpack(story.bundle(), "bundle")
    files[RESULT] = to_json(halved(story)).encode()
    manifest = Manifest.model_validate_json(files[MANIFEST])
    named = manifest.files | {RESULT: digest(files[RESULT].decode())}
    files[MANIFEST] = to_bytes(manifest.model_copy(update={"files": named}))
    return pack(files)


@plant(BYTES, "the seal of another bundle of the same server", "manifest")
def _(story: Story) -> Made:
    files, other = unpack(story.bundle(), "bundle"), story.bundle(made_at="2026-11-20T11:00:01Z")
    return pack(files | {"manifest.sig": unpack(other, "bundle")["manifest.sig"]})


@plant(SIGNED, "all of it signed anew under another root, with half the epsilon", "issuer")
def _(story: Story) -> Made:
    forged = told(epsilon=3.0)
    return forged.bundle(), story.by.root.certificate


@plant(SIGNED, "sealed by a site's key", "issuer")
def _(story: Story) -> Made:
    key, chain = story.by.enrol("A")
    return write_bundle(story.evidence(), {}, pki.Credential(chain, key))


@plant(SIGNED, "sealed after the server's certificate had ended", "issuer")
def _(story: Story) -> Made:
    return story.bundle(made_at="2027-03-01T11:00:00Z")


@plant(SIGNED, "a site's ledger made up, under a certificate of the server's own", "roster")
def _(story: Story) -> Made:
    story.known["B"] = story.by.enrol("B")[0]
    return story.bundle()


@plant(SIGNED, "a site that the root does not know", "roster")
def _(story: Story) -> Made:
    (known,) = read(SignedRoster, story.roster()).sites["A"]
    return story.bundle(roster=story.roster(sites={"A": (known,)}))


@plant(SIGNED, "a roster that the server's intermediate key signed", "roster")
def _(story: Story) -> Made:
    return story.bundle(roster=story.roster(story.by.intermediate))


@plant(SIGNED, "a roster that another root signed", "roster")
def _(story: Story) -> Made:
    return story.bundle(roster=story.roster(authorities().root))


@plant(SIGNED, "a roster with the made-up site's key put in", "roster")
def _(story: Story) -> Made:
    story.known["B"] = story.by.enrol("B")[0]
    keys = (read(SignedRoster, story.roster()).sites["B"], told_key(story, "B"))
    return story.bundle(roster=story.roster().replace(keys[0][0].encode(), keys[1].encode()))


def told_key(story: Story, site: str) -> str:
    """sha256 of the key that a site's ledger is kept under."""
    return public_key_sha256(story.ledgers[site].key.public_key())


@plant(SIGNED, "a job that the operator did not sign", "job")
def _(story: Story) -> Made:
    files = story.evidence()
    other = sign_job(make_job(epsilon=7.0), Ed25519PrivateKey.generate())
    return story.bundle(job=other.model_copy(update={"signer": files.job.signer}))


@plant(SIGNED, "another job of the same operator in the job's place", "rounds")
def _(story: Story) -> Made:
    return story.bundle(job=sign_job(make_job(epsilon=7.0), story.by.operator))


@plant(SIGNED, "a round left out, the rest chained anew", "rounds")
def _(story: Story) -> Made:
    del story.receipts[0]
    return story.bundle(result=told().result())


@plant(SIGNED, "the last round left out, of receipts and result", "rounds")
def _(story: Story) -> Made:
    del story.receipts[-1]
    return story.bundle()


@plant(SIGNED, "a round closed days after the next one", "rounds")
def _(story: Story) -> Made:
    change(story, 0, closed_at="2026-11-20T10:30:00Z")
    return story.bundle()


@plant(SIGNED, "a bundle made before its rounds were closed", "rounds")
def _(story: Story) -> Made:
    return story.bundle(made_at="2026-11-20T09:45:00Z")


@plant(SIGNED, "a round more than the job has", "rounds")
def _(story: Story) -> Made:
    story.round()
    return story.bundle()


@plant(SIGNED, "a round of another job", "rounds")
def _(story: Story) -> Made:
    change(story, 1, job_sha256=digest("another"))
    return story.bundle()


@plant(SIGNED, "a receipt that does not follow the one before", "rounds")
def _(story: Story) -> Made:
    one, _ = story.signed_receipts()
    loose = told()
    loose.by, loose.receipts = story.by, story.receipts[1:]
    return story.bundle(receipts=(one, *loose.signed_receipts()))


@plant(SIGNED, "a receipt that was edited", "receipts")
def _(story: Story) -> Made:
    one, two = story.signed_receipts()
    edited = two.receipt.model_copy(update={"output_sha256": digest("another")})
    return story.bundle(receipts=(one, two.model_copy(update={"receipt": edited})))


@plant(SIGNED, "a receipt signed by another federation's server", "receipts")
def _(story: Story) -> Made:
    one, _ = story.signed_receipts()
    stranger = replace(story, by=authorities())
    return story.bundle(receipts=(one, stranger.signed_receipts()[1]))


@plant(SIGNED, "a receipt closed before its certificate began", "receipts")
def _(story: Story) -> Made:
    change(story, 0, closed_at="2025-01-01T00:00:00Z")
    return story.bundle()


@plant(SIGNED, "a round that starts from another adapter than the last one made", "links")
def _(story: Story) -> Made:
    change(story, 0, output_sha256=digest("another"))
    return story.bundle()


@plant(SIGNED, "a result whose adapter no round made", "links")
def _(story: Story) -> Made:
    return altered(story, lambda result: result.update(vector_sha256=digest("another")))


# The numbers of ``weights()`` that travel, in the order of their tensors' names in the model.
VECTOR = struct.pack("<42f", *[0.5] * 2, *[1.0] * 8, *range(32))


@plant(SIGNED, "a certificate with an adapter's file that no round made", "adapter", weights(9.0))
def _(story: Story) -> Made:
    story.make(VECTOR, weights(9.0))
    return write_bundle(story.evidence(), documented(story), story.by.server)


@plant(SIGNED, "another adapter's file than the certificate names", "adapter", weights(9.0))
def _(story: Story) -> Made:
    story.make(VECTOR, weights())
    return write_bundle(story.evidence(), documented(story), story.by.server)


def plant_weights(fault: str, alter: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """The very numbers that the round made, in a file that is another adapter."""
    file = safetensors.numpy.save(alter(dict(safetensors.numpy.load(weights()))))

    @plant(SIGNED, fault, "adapter", file)
    def _(story: Story) -> Made:
        story.make(VECTOR, file)
        return write_bundle(story.evidence(), documented(story), story.by.server)


def renamed(tensors: dict[str, Any], was: str, put: str) -> dict[str, Any]:
    """The same tensors under other names."""
    return {name.replace(was, put): values for name, values in tensors.items()}


plant_weights(
    "the kept round's numbers as an adapter of modules that are no target",
    lambda tensors: renamed(tensors, ".query.lora_B", ".value.lora_B"),
)
plant_weights(
    "the kept round's numbers as one tensor of the head",
    lambda _: {"base_model.model.classifier.weight": np.frombuffer(VECTOR, "<f4")},
)
plant_weights(
    "the kept round's numbers without the A beside a B",
    lambda tensors: {name: values for name, values in tensors.items() if ".lora_A." not in name},
)
plant_weights(
    "the kept round's numbers with a B lying on its side",
    lambda tensors: {
        name: values.reshape(values.shape[::-1]) if ".lora_B." in name else values
        for name, values in tensors.items()
    },
)
plant_weights(
    "the kept round's numbers under names that no loader looks for",
    lambda tensors: renamed(tensors, "base_model.model.", "model."),
)


def documented(story: Story) -> dict[str, bytes]:
    """A true certificate of the job."""
    evidence = story.evidence()
    made = certificate_of(evidence, spendings(evidence), ())
    return {"certificate.json": to_json_certificate(made)}


@plant(SIGNED, "an update that counts without its charge", "replies")
def _(story: Story) -> Made:
    last = story.receipts[-1]
    charges = {"A": last.charges["A"]}
    change(story, 1, charges=charges, heads=last.heads | {"B": story.receipts[0].heads["B"]})
    return story.bundle()


@plant(SIGNED, "a site asked that the job does not name", "replies")
def _(story: Story) -> Made:
    change(story, 1, asked=("A", "B", "C"))
    return story.bundle()


@plant(SIGNED, "a round without any update that counts", "replies")
def _(story: Story) -> Made:
    none = tuple(r.model_copy(update={"accepted": False}) for r in story.receipts[1].replies)
    change(story, 1, replies=none)
    return story.bundle()


@plant(SIGNED, "a site that answered twice", "replies")
def _(story: Story) -> Made:
    again = Reply(site="A", payload_sha256=digest("again"), accepted=True)
    change(story, 1, replies=(*story.receipts[1].replies, again))
    return story.bundle()


@plant(SIGNED, "a round of one site kept out of the receipts", "charges")
def _(_: Story) -> Made:
    story = begin(rounds=3)
    story.round()
    story.round()
    receipt, before = story.receipts[1], story.receipts[0]
    change(
        story,
        1,
        asked=("A",),
        charges={"A": receipt.charges["A"]},
        replies=tuple(reply for reply in receipt.replies if reply.site == "A"),
        heads=receipt.heads | {"B": before.heads["B"]},
    )
    story.round()
    return shown(story)


@plant(SIGNED, "the last rounds left out, with scores by which patience ended the job", "ending")
def _(_: Story) -> Made:
    story = told(rounds=6, training={"patience": 1})
    del story.receipts[2:]

    def ended(result: dict[str, Any]) -> None:
        result["rounds"][0]["accuracy"], result["rounds"][1]["accuracy"] = 0.6, 0.5
        result |= {"kept_round": 1, "vector_sha256": story.receipts[0].output_sha256}

    return altered(story, ended), story.by.root.certificate


@plant(SIGNED, "a site's last round kept out, and its last word with it", "epsilon")
def _(story: Story) -> Made:
    hide_last(story, 1)
    return story.bundle(result=story.result())


@plant(SIGNED, "a site's counts kept out, and its last word with them", "epsilon")
def _(_: Story) -> Made:
    story = told_with_counts()
    hide_last(story, 2)
    return story.bundle(result=story.result()), story.by.root.certificate


def hide_last(story: Story, index: int) -> None:
    """B was not asked, as the receipt has it, and gives no last word."""
    receipt, before = story.receipts[index], story.receipts[index - 1]
    change(
        story,
        index,
        asked=("A",),
        charges={"A": receipt.charges["A"]},
        replies=tuple(reply for reply in receipt.replies if reply.site == "A"),
        heads=receipt.heads | {"B": before.heads["B"]},
    )
    story.away = ("B",)


def charged(**charge: object) -> Story:
    """A story in whose second round all sites wrote another charge into their ledgers."""
    story = begin()
    story.round()
    job = story.job
    plan = {
        "sampling_rate": job.privacy.sampling_rate,
        "noise_multiplier": job.noise_multiplier,
        "steps": job.training.local_steps,
    }
    story.round(entry={"charge": plan | charge})
    return story


def shown(story: Story) -> Made:
    return story.bundle(), story.by.root.certificate


@plant(LEDGER, "a charge with half the noise", "charges")
def _(_: Story) -> Made:
    return shown(charged(noise_multiplier=0.25))


@plant(LEDGER, "a charge of fewer steps than a round has", "charges")
def _(_: Story) -> Made:
    return shown(charged(steps=1))


@plant(LEDGER, "a charge at another sampling rate", "charges")
def _(_: Story) -> Made:
    return shown(charged(sampling_rate=0.01))


@plant(LEDGER, "a charge for records where the job speaks of patients", "charges")
def _(_: Story) -> Made:
    story = begin()
    story.round()
    story.round(entry={"terms": {"unit": "record", "delta": 1e-5}})
    return shown(story)


@plant(LEDGER, "a charge of another round", "charges")
def _(_: Story) -> Made:
    story = begin()
    story.round()
    story.round(entry={"round": 3})
    return shown(story)


@plant(LEDGER, "a charge of another job", "charges")
def _(_: Story) -> Made:
    story = begin()
    story.round()
    story.round(entry={"job_sha256": digest("another")})
    return shown(story)


@plant(LEDGER, "a charge for another adapter than was sent", "charges")
def _(_: Story) -> Made:
    story = begin()
    story.round()
    story.round(entry={"input_sha256": digest("another")})
    return shown(story)


@plant(LEDGER, "the first round's charge shown again", "charges")
def _(story: Story) -> Made:
    recharge(story, 1, "A", story.receipts[0].charges["A"])
    return story.bundle()


@plant(LEDGER, "a charge that was edited", "charges")
def _(story: Story) -> Made:
    charge = story.receipts[1].charges["A"]
    body = charge.row.body.replace('"steps":2', '"steps":1')
    row = charge.row.model_copy(update={"body": body})
    recharge(story, 1, "A", charge.model_copy(update={"row": row}))
    return story.bundle()


@plant(LEDGER, "one site's charge shown as another's", "charges")
def _(story: Story) -> Made:
    recharge(story, 1, "B", story.receipts[1].charges["A"])
    return story.bundle()


@plant(LEDGER, "a charge that is not under its head", "charges")
def _(story: Story) -> Made:
    charge = story.receipts[1].charges["A"]
    wrong = tuple(digest(part) for part in charge.row.inclusion)
    row = charge.row.model_copy(update={"inclusion": wrong})
    recharge(story, 1, "A", charge.model_copy(update={"row": row}))
    return story.bundle()


@plant(LEDGER, "a head that does not continue the one before", "charges")
def _(story: Story) -> Made:
    charge = story.receipts[1].charges["A"]
    wrong = tuple(digest(part) for part in charge.consistency)
    recharge(story, 1, "A", charge.model_copy(update={"consistency": wrong}))
    return story.bundle()


@plant(LEDGER, "a ledger kept under a key that no certificate names", "charges")
def _(_: Story) -> Made:
    story = begin()
    story.ledgers["A"] = Ledger("A", story.by.enrol("A")[0])
    story.round()
    story.round()
    return shown(story)


@plant(LEDGER, "a new key that nobody handed the ledger over to", "charges")
def _(_: Story) -> Made:
    story = begin()
    story.round()
    key, chain = story.by.enrol("A")
    story.certificates["A"] += chain
    seq = story.ledgers["A"].rekey(key)
    story.round(named={"A": seq})
    charge = story.receipts[1].charges["A"]
    lost = charge.model_copy(update={"hand_overs": ()})
    recharge(story, 1, "A", lost)
    return shown(story)


def plant_ledger(fault: str, **created: object) -> None:
    """A ledger whose first entry says something else."""

    @plant(LEDGER, fault, "charges")
    def _(_: Story) -> Made:
        story = begin()
        story.ledgers["A"] = Ledger("A", story.ledgers["A"].pem, **created)
        story.round()
        story.round()
        return shown(story)


plant_ledger("a ledger that began as another site's", site="Z")
plant_ledger("a ledger about records where the job speaks of patients", unit="record")
plant_ledger("a ledger under a key that was made for it alone", is_ephemeral=True)


@plant(LEDGER, "a made-up site with the ledger and key of another", "charges")
def _(_: Story) -> Made:
    return with_a_twin(begin(rounds=1))


@plant(LEDGER, "a made-up site with another's ledger, whose beginning is not shown", "charges")
def _(_: Story) -> Made:
    return with_a_twin(begin(rounds=1), since=1)


def with_a_twin(story: Story, since: int = 0) -> Made:
    """A alone takes part; B is made up, with a certificate for the key of A."""
    story.round(away=["B"])
    ledger = story.ledgers["A"]
    if since:
        seq = story.receipts[0].charges["A"].row.seq
        recharge(story, 0, "A", ledger.charge(seq, smaller(story, since)))
    csr = pki.create_csr("B", ledger.pem)
    story.certificates["B"] = pki.issue_site(csr, story.by.intermediate, now=AT)
    receipt = story.receipts[0]
    (reply,), charge, head = receipt.replies, receipt.charges["A"], receipt.heads["A"]
    change(
        story,
        0,
        asked=("A", "B"),
        charges={"A": charge, "B": charge},
        heads={"A": head, "B": head},
        replies=(reply, reply.model_copy(update={"site": "B"})),
    )
    ends = ledger.last_word(story.job.sha256, head, 2, 0)
    story.ledgers["B"] = ledger
    return story.bundle(endings={"A": ends, "B": ends}), story.by.root.certificate


@plant(LEDGER, "two ledgers of equal size with different roots", "heads")
def _(_: Story) -> Made:
    story = told()
    other = Ledger("A", story.ledgers["A"].pem)
    while len(other.rows) < story.receipts[1].heads["A"].size:
        other.append(Closed, job_sha256=digest("another"), state="stopped", final_sha256="")
    change(story, 1, heads=story.receipts[1].heads | {"A": other.head()})
    return shown(story)


@plant(LEDGER, "a charge that continues an older head than the last", "heads")
def _(_: Story) -> Made:
    story = told(rounds=3)
    ledger, seq = story.ledgers["A"], story.receipts[2].charges["A"].row.seq
    recharge(story, 2, "A", ledger.charge(seq, story.receipts[0].heads["A"]))
    return shown(story)


@plant(LEDGER, "a ledger that shrank", "heads")
def _(story: Story) -> Made:
    change(story, 1, heads=story.receipts[1].heads | {"A": smaller(story, 2)})
    return story.bundle()


@plant(LEDGER, "a ledger rolled back to before the first round, and gone on from there", "heads")
def _(_: Story) -> Made:
    story = begin()
    story.round()
    heads = story.receipts[0].heads
    story.ledgers["A"] = Ledger("A", story.ledgers["A"].pem)
    change(story, 0, heads={"B": heads["B"]})
    story.round()
    change(story, 0, heads=heads)
    return shown(story)


@plant(LEDGER, "a ledger that grew without a proof", "heads")
def _(story: Story) -> Made:
    change(story, 0, heads=story.receipts[0].heads | {"A": story.ledgers["A"].head()})
    return story.bundle()


@plant(LEDGER, "a head that another site's key signed", "heads")
def _(story: Story) -> Made:
    heads = story.receipts[1].heads
    head = story.ledgers["B"].chain.head(story.ledgers["B"].key)
    forged = heads["A"].model_copy(
        update={"signature": head.signature, "public_key": head.public_key}
    )
    change(story, 1, heads=heads | {"A": forged})
    return story.bundle()


@plant(LEDGER, "a site whose certificate another root signed", "certificate")
def _(story: Story) -> Made:
    story.certificates["A"] = authorities().enrol("A")[1]
    return story.bundle()


@plant(LEDGER, "another site's certificate in its place", "certificate")
def _(story: Story) -> Made:
    story.certificates["A"] = story.certificates["B"]
    return story.bundle()


@plant(LEDGER, "a charge after the site's certificate had ended", "charges")
def _(_: Story) -> Made:
    story = begin()
    key, csr = pki.new_site_key_and_csr("A")
    story.certificates["A"] = pki.issue_site(csr, story.by.intermediate, now=BEFORE)
    story.ledgers["A"] = Ledger("A", key)
    story.round()
    story.round()
    return shown(story)


@plant(LEDGER, "a last word on the job that was edited", "ending")
def _(story: Story) -> Made:
    ends = story.endings()
    row = ends["A"].row
    body = row.body.replace('"steps":4', '"steps":2')
    edited = ends["A"].model_copy(update={"row": row.model_copy(update={"body": body})})
    return story.bundle(endings=ends | {"A": edited})


@plant(LEDGER, "a last word that states fewer steps than were charged", "ending")
def _(story: Story) -> Made:
    story.steps["A"] -= 1
    return story.bundle()


@plant(LEDGER, "a last word on another job", "ending")
def _(story: Story) -> Made:
    since = story.receipts[1].heads["A"]
    other = story.ledgers["A"].last_word(digest("another"), since, 4, 0)
    return story.bundle(endings=story.endings() | {"A": other})


@plant(LEDGER, "another site's last word", "ending")
def _(story: Story) -> Made:
    ends = story.endings()
    return story.bundle(endings=ends | {"A": ends["B"]})


@plant(LEDGER, "counts in the last word that nobody asked for", "ending")
def _(story: Story) -> Made:
    story.counted["A"] += 1
    return story.bundle()


@plant(CLAIM, "half the epsilon, signed by the server", "epsilon")
def _(story: Story) -> Made:
    return story.bundle(result=halved(story))


@plant(CLAIM, "a round that a silent site was asked for, left out of its steps", "epsilon")
def _(_: Story) -> Made:
    story = begin()
    story.round()
    story.round(silent=["B"])
    fewer = privacy_statement(story.job, seeded=False).epsilon(2)

    def less(result: dict[str, Any]) -> None:
        result["sites"][1] |= {"steps": 2, "epsilon": fewer}

    return altered(story, less), story.by.root.certificate


@plant(CLAIM, "another delta", "result")
def _(story: Story) -> Made:
    def other(result: dict[str, Any]) -> None:
        result["privacy"]["delta"] = 1e-3
        for site in result["sites"]:
            site["delta"] = 1e-3

    return altered(story, other)


@plant(CLAIM, "less noise everywhere than the job's epsilon needs", "result")
def _(_: Story) -> Made:
    story = begin()
    plan = {"sampling_rate": 0.05, "noise_multiplier": 0.5, "steps": 2}
    story.round(entry={"charge": plan})
    story.round(entry={"charge": plan})
    return altered(story, lambda r: r["privacy"].update(noise_multiplier=0.5)), (
        story.by.root.certificate
    )


@plant(CLAIM, "more noise than the job has, with ledgers to fit by sites made up for it", "result")
def _(_: Story) -> Made:
    story = begin()
    noise = 4 * story.job.noise_multiplier
    for _round in range(2):
        story.round(entry={"charge": asdict(GaussianSteps(0.05, noise, 2))})
    return altered(story, lambda r: priced(r, noise_multiplier=noise)), story.by.root.certificate


@plant(CLAIM, "more noise on the counts than the job has, and no charge for them", "result")
def _(_: Story) -> Made:
    story = told_with_counts()
    heads, noise = story.receipts[-2].heads, 1e4
    change(story, 2, charges={}, replies=(), heads=heads)

    def cheap(result: dict[str, Any]) -> None:
        known = result["privacy"]["metrics_noise_multiplier"]
        result["metrics"]["deviation"] *= noise / known
        result["metrics"] = (
            MetricsResult.model_validate(result["metrics"]).recomputed().model_dump()
        )
        priced(result, metrics_noise_multiplier=noise)

    return altered(story, cheap), story.by.root.certificate


@plant(CLAIM, "half the epsilon after the first round", "epsilon by round")
def _(story: Story) -> Made:
    return altered(story, lambda r: r["rounds"][0].update(epsilon=r["rounds"][0]["epsilon"] / 2))


@plant(CLAIM, "words on the hold-out that the operator did not declare", "result")
def _(story: Story) -> Made:
    more = "each of its patients was asked, and is at no site"
    return altered(story, lambda result: result["hold_out"].update(disjoint_because=more))


@plant(CLAIM, "a site left out of the result", "result")
def _(story: Story) -> Made:
    return altered(story, lambda result: result["sites"].pop())


@plant(CLAIM, "the unit a record where patients were charged", "result")
def _(story: Story) -> Made:
    return altered(story, lambda r: r["privacy"].update(unit="record", unit_cap=None))


@plant(CLAIM, "a run with repeatable noise shown as a federation's", "result")
def _(story: Story) -> Made:
    story.is_simulation = True
    return story.bundle(is_simulation=False)


for odd_grid in ("inprocess", "stacked", "superlink"):

    @plant(CLAIM, f"a federation's run that was none over the link: `{odd_grid}`", "result")
    def _(story: Story, grid: str = odd_grid) -> Made:
        return altered(story, lambda result: result.update(grid=grid))


@plant(SIGNED, "words in place of the version that made it", "container")
def _(story: Story) -> Made:
    said = "veiltune 1.0, certified by NIST, epsilon 0.1"
    return resealed(story, {}, software=said)


@plant(LEDGER, "a root beside a site's certificates", "certificate")
def _(story: Story) -> Made:
    story.certificates["A"] += story.by.root.certificate
    return story.bundle()


def resealed(story: Story, documents: dict[str, bytes], **changed: object) -> bytes:
    """A bundle with documents of any name, as a server could sign it with other software."""
    files = unpack(story.bundle(), "bundle")
    files |= {DOCUMENTS + name: data for name, data in documents.items()}
    manifest = Manifest.model_validate_json(files[MANIFEST])
    named = {
        n: hashlib.sha256(d).hexdigest() for n, d in files.items() if n not in (MANIFEST, SEAL)
    }
    said = to_bytes(manifest.model_copy(update={"files": named, **changed}))
    return pack(files | {MANIFEST: said, SEAL: to_bytes(seal(said, story.by.server))})


def plant_unproven(fault: str, name: str, caught: str) -> None:
    """A file that calls itself a certificate in the bundle of a run that promises nothing."""

    @plant(CLAIM, fault, caught)
    def _(story: Story) -> Made:
        story.is_simulation = True
        return resealed(story, {name: b"<h1>Certificate: epsilon 1</h1>"})


plant_unproven("a simulation with a certificate of privacy", "certificate.json", "documents")
for odd in (
    "privacy-certificate.html",
    "Certificate.json",
    "certificate",
    "sites/A/Certificate.pdf",
):
    plant_unproven(f"a simulation with a certificate called `{odd}`", odd, "container")


def certified(story: Story, site: str = "") -> dict[str, Any]:
    """The parts of a true certificate."""
    evidence = story.evidence()
    return certificate_of(evidence, spendings(evidence), (), site=site).model_dump()


def bundled(story: Story, parts: dict[str, Any], name: str = "certificate.json") -> Made:
    said = to_json_certificate(identified(**parts))
    return write_bundle(story.evidence(), {name: said}, story.by.server), story.by.root.certificate


def plant_certificate(fault: str, alter: Callable[[dict[str, Any]], object]) -> None:
    """A certificate of the whole job in which something else stands."""

    @plant(CLAIM, fault, "documents")
    def _(story: Story) -> Made:
        parts = certified(story)
        alter(parts)
        return bundled(story, parts)


def halve_epsilon(parts: dict[str, Any]) -> None:
    parts["promise"]["epsilon"] /= 2
    for site in parts["sites"]:
        site["epsilon"] /= 2


plant_certificate("a certificate of privacy that states half the epsilon", halve_epsilon)
plant_certificate(
    "a certificate with less for somebody with many records",
    lambda parts: parts["sites"][0].update(person_epsilon=0.01),
)
plant_certificate(
    "a certificate with less for one person known to several sites",
    lambda parts: parts["known_to_several_sites"][1].update(epsilon=0.1),
)
plant_certificate(
    "a certificate on which accountants found half",
    lambda parts: parts["sites"][1]["figures"].update(pld=3.0, prv=3.0, rdp=3.0),
)
plant_certificate(
    "a certificate with a lower cap of a life's data than the ledger has",
    lambda parts: parts["sites"][0]["lifetime"].update(cap_epsilon=6.5),
)
plant_certificate(
    "a certificate on which less of a life's epsilon is shown",
    lambda parts: parts["sites"][0]["lifetime"].update(epsilon_shown=0.2),
)
plant_certificate(
    "a certificate on which the operator agreed to less",
    lambda parts: parts["budget_policy"].update(job_epsilon=0.2),
)
plant_certificate(
    "a certificate whose words promise more than its figures",
    lambda parts: parts["promise"].update(meaning="Epsilon 0.1 for everybody."),
)
plant_certificate(
    "a certificate whose bet is better than its epsilon",
    lambda parts: parts["promise"].update(as_a_bet="No guess is right more than 51% of the time."),
)
plant_certificate(
    "a certificate on which somebody checked the hold-out",
    lambda parts: parts["utility"].update(disjointness="Checked: no patient of a site is in it."),
)


def audit_of(story: Story, **changes: object) -> dict[str, Any]:
    """An audit that was handed in, with what its job costs."""
    true = {
        "name": "canary",
        "site": "A",
        "code_sha256": digest("code"),
        "runs": 1,
        "lower_bound": 0.5,
        "significance": 0.05,
        "epsilon": privacy_statement(story.job, seeded=False).epsilon(story.job.steps),
        "verdict": "consistent with the claim",
    }
    return true | changes


def plant_audit(fault: str, *, times: int = 1, **changes: object) -> None:
    """A certificate with an audit that is none of this job's."""

    @plant(CLAIM, fault, "documents")
    def _(story: Story) -> Made:
        return bundled(story, certified(story) | {"audits": [audit_of(story, **changes)] * times})


plant_audit("a certificate with an audit whose bound refutes it", lower_bound=6.5, epsilon=7.0)
plant_audit("a certificate with an audit of a site that took no part", site="Z")
plant_audit("a certificate with an audit of code that nobody ran", code_sha256=digest("other"))
plant_audit("a certificate with an audit that is mostly wrong", significance=0.999)
plant_audit("a certificate with an audit of a claim of 100", epsilon=100.0)
plant_audit("a certificate with an audit of a claim of 0", epsilon=0.0, lower_bound=0.0)
plant_audit("a certificate with an audit that no chance could refute", significance=1e-300)
plant_audit("a certificate with one audit three times", times=3)


@plant(CLAIM, "a certificate with an audit that measured epsilon", "documents")
def _(story: Story) -> Made:
    evidence = story.evidence()
    audit = Audit.model_construct(**audit_of(story, verdict="epsilon measured"))
    true = certificate_of(evidence, spendings(evidence), ())
    forged = true.model_copy(update={"audits": (audit,)})
    said = to_json_certificate(forged.model_copy(update={"id": id_of(forged)}))
    return write_bundle(evidence, {"certificate.json": said}, story.by.server)


@plant(CLAIM, "a certificate with words in place of an accountant's version", "documents")
def _(story: Story) -> Made:
    evidence = story.evidence()
    true = certificate_of(evidence, spendings(evidence), ())
    words = "NIST reference accountant: epsilon 0.10, certified"
    told_so = true.accountants[0].model_copy(update={"software": words})
    forged = true.model_copy(update={"accountants": (told_so, *true.accountants[1:])})
    said = to_json_certificate(forged.model_copy(update={"id": id_of(forged)}))
    return write_bundle(evidence, {"certificate.json": said}, story.by.server)


def uneven() -> Story:
    """Site B is asked for one round of three, and so spends the least."""
    story = begin(rounds=3)
    story.round()
    story.round(away=["B"])
    story.round(away=["B"])
    return story


@plant(CLAIM, "a certificate of the job that has the cheapest site alone", "documents")
def _(_: Story) -> Made:
    story = uneven()
    return bundled(story, certified(story, "B") | {"scope": "job"})


@plant(CLAIM, "a certificate of the cheapest site in the job's place", "documents")
def _(_: Story) -> Made:
    story = uneven()
    return bundled(story, certified(story, "B"))


@plant(CLAIM, "a certificate of the cheapest site in another site's place", "documents")
def _(_: Story) -> Made:
    story = uneven()
    return bundled(story, certified(story, "B"), "sites/A/certificate.json")


@plant(CLAIM, "a page of a certificate without the JSON that is compared", "documents")
def _(story: Story) -> Made:
    page = {"sites/A/certificate.html": b"<h1>epsilon 0.1</h1>"}
    return write_bundle(story.evidence(), page, story.by.server)


def pages(story: Story) -> dict[str, bytes]:
    """A true certificate of the job, and all pages in HTML."""
    evidence = story.evidence()
    sites = spendings(evidence)
    made = certificate_of(evidence, sites, ())
    due = sheets(evidence, sites, {"certificate": made})
    files = {f"{name}.html": html_of(sheet) for name, sheet in due.items()}
    return files | {"certificate.json": to_json_certificate(made)}


def plant_page(fault: str, name: str, was: str, put: str) -> None:
    """A page that says something else beside its true JSON."""

    @plant(CLAIM, fault, "documents")
    def _(story: Story) -> Made:
        files = pages(story)
        said = re.sub(was, put, files[name].decode(), flags=re.DOTALL)
        assert said.encode() != files[name]
        return write_bundle(story.evidence(), files | {name: said.encode()}, story.by.server)


plant_page("a certificate's page with half the epsilon", "certificate.html", "6[.]00", "3.00")
plant_page("a cover with half the epsilon", "index.html", "6[.]00", "3.00")
plant_page("a data card's page with half the epsilon", "sites/A/data-card.html", "6[.]00", "3.00")
plant_page(
    "a page of receipts without the last round",
    "receipts.html",
    f"<tr>(?:(?!<tr>).)*{digest('adapter 2')[:16]}.*?</tr>",
    "",
)


def plant_print(
    fault: str, alter: Callable[[bytes, Story], bytes], status: Status = "fail", **beside: str
) -> None:
    """A PDF of the certificate that says something else beside its true JSON and page.

    ``beside``: the versions that a bill of materials names, if there is one.
    """

    @plant(CLAIM, fault, "printed", status=status)
    def _(story: Story) -> Made:
        files = pages(story)
        files = {name: data for name, data in files.items() if name.startswith("certificate.")}
        true = pdf_of(certificate_sheet(read_certificate(files["certificate.json"])))
        changed = alter(true, story)
        if beside:
            files["sbom.cdx.json"] = bill(**beside)
        assert changed != true or beside
        return write_bundle(story.evidence(), files | {"certificate.pdf": changed}, story.by.server)


def bill(**versions: str) -> bytes:
    """A list of what is installed, true where ``versions`` says nothing else."""
    named = dict(part.split() for part in PRODUCER.split(", ")) | versions
    parts = [{"name": name, "version": version} for name, version in sorted(named.items())]
    return json.dumps({"components": parts}).encode()


def with_half_of_epsilon(_: bytes, story: Story) -> bytes:
    parts = certified(story)
    halve_epsilon(parts)
    return pdf_of(certificate_sheet(identified(**parts)))


def drawn_by(pdf: bytes, fpdf2: str) -> bytes:
    """The PDF as if another fpdf2 had drawn it."""
    return re.sub(rb"(?<=/Producer [(]fpdf2 )[^,]*", fpdf2.encode(), pdf)


OTHER = "9.9.9"
plant_print("a certificate's PDF with half the epsilon", with_half_of_epsilon)
plant_print("a certificate's PDF that is none", lambda *_: b"%PDF-1.4 epsilon 0.1 for everybody")
plant_print("a certificate's PDF with a second document at its end", lambda true, _: true + true)
plant_print(
    "a certificate's PDF without its last pages",
    lambda true, _: re.sub(rb"(/Kids \[\d+ 0 R)[^\]]*", rb"\1", true),
)
plant_print(
    "a certificate's PDF with more behind the ends of its streams",
    lambda true, _: anew(true, with_streams(lambda raw: raw + b"epsilon 3")),
)
plant_print("a certificate's PDF with an object twice", lambda true, _: anew(true, doubled))
plant_print(
    "a certificate's PDF with two objects' numbers exchanged",
    lambda true, _: anew(true, misnumbered),
)
plant_print(
    "a certificate's PDF whose table leads beside its objects",
    lambda true, _: anew(true, lambda objects: objects, shift=1),
)
plant_print(
    "a certificate's PDF that inflates to 65 MiB before its pages",
    lambda true, _: anew(true, bursting),
)
plant_print(
    "a certificate's PDF that ends in eight thousand trailers",
    lambda true, _: true[: true.index(b"trailer\n")] + b"trailer\n" * 8000,
)
plant_print(
    "a certificate's PDF with half the epsilon, and words in place of the version that drew it",
    lambda true, story: drawn_by(with_half_of_epsilon(true, story), "2.8.9 (it was compared)"),
)
plant_print(
    "a certificate's PDF with half the epsilon, by a version that is not the installed one",
    lambda true, story: drawn_by(with_half_of_epsilon(true, story), OTHER),
    pip="25.0",
)
plant_print(
    "a certificate's PDF by the version here, where another one is installed",
    lambda true, _: true,
    fpdf2=OTHER,
)


@plant(
    CLAIM,
    "a certificate's PDF with half the epsilon, by another version than the cover's",
    "printed",
)
def _(story: Story) -> Made:
    evidence, files = story.evidence(), pages(story)
    made = {"certificate": read_certificate(files["certificate.json"])}
    files |= {
        "index.pdf": pdf_of(sheets(evidence, spendings(evidence), made)["index"]),
        "certificate.pdf": drawn_by(with_half_of_epsilon(b"", story), OTHER),
    }
    return write_bundle(evidence, files, story.by.server)


plant_print(
    "a certificate's PDF with half the epsilon, by another version wherever one is named",
    lambda true, story: drawn_by(with_half_of_epsilon(true, story), OTHER),
    "not checkable",
    fpdf2=OTHER,
)


@plant(CLAIM, "a data card that states half the epsilon", "documents")
def _(story: Story) -> Made:
    evidence, name = story.evidence(), "sites/A/data-card.json"
    card = json.loads(data_card_json(evidence, evidence.result.sites[0]))
    half = json.dumps(card | {"epsilon": card["epsilon"] / 2}, indent=2) + "\n"
    return write_bundle(evidence, {name: half.encode()}, story.by.server)


@plant(SIGNED, "the counts' receipt left out", "rounds")
def _(_: Story) -> Made:
    story = told_with_counts()
    result = story.result()
    del story.receipts[-1]
    return story.bundle(result=result), story.by.root.certificate


@plant(SIGNED, "counts that are used without their charge", "replies")
def _(_: Story) -> Made:
    story = told_with_counts()
    last = story.receipts[-1]
    heads = last.heads | {"B": story.receipts[-2].heads["B"]}
    change(story, 2, charges={"A": last.charges["A"]}, heads=heads)
    return shown(story)


@plant(LEDGER, "counts charged with twice the noise that they have", "charges")
def _(_: Story) -> Made:
    counts = make_job(metrics=COUNTS).metrics_event
    noise = 2 * counts.noise_multiplier if counts else 0.0
    charge = {"sampling_rate": 1.0, "noise_multiplier": noise, "steps": 1}
    return shown(told_with_counts(entry={"charge": charge}))


@plant(LEDGER, "counts charged as a round of training", "charges")
def _(_: Story) -> Made:
    return shown(told_with_counts(entry={"purpose": "update"}))


@plant(SIGNED, "counts of another adapter than the one that was kept", "links")
def _(_: Story) -> Made:
    story, other = told_with_counts(), digest("another")
    change(story, 2, input_sha256=other, output_sha256=other)
    return shown(story)


@plant(CLAIM, "counts that are charged, and left out of a site's epsilon", "epsilon")
def _(_: Story) -> Made:
    story = told_with_counts()
    less = privacy_statement(story.job, seeded=False).epsilon(4)
    return altered(story, lambda r: r["sites"][0].update(epsilon=less)), story.by.root.certificate


@plant(CLAIM, "a site that was asked for counts and gave none, as if it had not been", "epsilon")
def _(_: Story) -> Made:
    story = told_with_counts(silent=["B"])
    less = privacy_statement(story.job, seeded=False).epsilon(4)

    def forgotten(result: dict[str, Any]) -> None:
        result["metrics"]["silent"] = []
        result["sites"][1] |= {"counts": 0, "epsilon": less}

    return altered(story, forgotten), story.by.root.certificate


@plant(CLAIM, "the counts forgotten by the whole result", "result")
def _(_: Story) -> Made:
    story = told_with_counts()
    less = privacy_statement(story.job, seeded=False).epsilon(4)

    def forgotten(result: dict[str, Any]) -> None:
        result["metrics"] = result["privacy"]["metrics_noise_multiplier"] = None
        for site in result["sites"]:
            site |= {"counts": 0, "epsilon": less}

    return altered(story, forgotten), story.by.root.certificate


@plant(CLAIM, "less noise on the counts than is charged for them", "result")
def _(_: Story) -> Made:
    story = told_with_counts()
    half = story.job.metrics_deviation / 2
    return altered(story, lambda r: r["metrics"].update(deviation=half)), story.by.root.certificate


def change(story: Story, index: int, **fields: object) -> None:
    """Change a receipt, before it is signed."""
    story.receipts[index] = story.receipts[index].model_copy(update=fields)


def recharge(story: Story, index: int, site: str, charge: SignedCharge) -> None:
    receipt = story.receipts[index]
    change(
        story,
        index,
        charges=receipt.charges | {site: charge},
        heads=receipt.heads | {site: charge.head},
    )


def altered(story: Story, alter: Callable[[dict[str, Any]], object]) -> bytes:
    """The bundle with another result, as the server would sign it."""
    result = story.result().model_dump(mode="json")
    alter(result)
    return story.bundle(result=Result.model_validate(result))


def priced(result: dict[str, Any], **noise: float) -> None:
    """Another noise in a result, and every epsilon that it would have."""
    result["privacy"] |= noise
    privacy = PrivacyStatement.model_validate(result["privacy"])
    for site in result["sites"]:
        site["epsilon"] = privacy.epsilon(site["steps"], site["counts"])
    for row in result["rounds"]:
        row["epsilon"] = privacy.epsilon(2 * row["round"])


def halved(story: Story) -> Result:
    result = story.result().model_dump(mode="json")
    for row in (*result["sites"], *result["rounds"]):
        row["epsilon"] /= 2
    return Result.model_validate(result)


def smaller(story: Story, size: int) -> HeadOf:
    """A true head of A's ledger when it had fewer entries."""
    ledger, chain = story.ledgers["A"], Chain()
    for row in ledger.rows[:size]:
        chain.extend(row)
    return HeadOf.of(chain.head(ledger.key))


def table() -> str:
    """The rows of the table in ``docs/evidence.md``."""
    left = {p: "" if p.status == "fail" else f": {p.status}" for p in PLANTED}
    return "".join(f"| {p.part} | {p.fault} | `{p.caught}`{left[p]} |\n" for p in PLANTED)


if __name__ == "__main__":
    sys.stdout.write(table())
