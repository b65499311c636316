"""Everything that reads bytes from elsewhere, with a document that it takes.

Each parser gets a file's or a message's bytes and may end in one way other than an answer: an error
of ours, which is one sentence. Both fuzzers start from the documents.
"""

import gzip
import io
import json
import tempfile
from base64 import b64decode, b64encode
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import tomli_w
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import ConfigRecord, Message, RecordDict
from pyarrow import parquet

from client.anchor import Anchor
from client.config import load_home
from common import messages, metric_messages, pki
from common.audit.certificate import read_certificate as read_privacy_certificate
from common.audit.events import read_events
from common.audit.evidence import MANIFEST, open_bundle
from common.audit.ledger import read_public
from common.audit.printed import installed
from common.audit.report import read_report
from common.bundle import read_bundle
from common.certificates import check_site_chain, days_left, leaf_key, read_identity
from common.config import parse, read_toml
from common.data.readers import read_records
from common.data.records import ColumnMap
from common.documents.printed_form import DRAWING
from common.flower import become_server, message_from_bytes, message_to_bytes
from common.histograms import MetricsSection
from common.job import Job, load_job, parse_signed_job, sign_job
from common.keys import load_key
from common.link import framing
from common.link.codecs import CODECS
from common.link.framing import Assembler
from common.link.identity import read_certificate
from common.link.payload import pack, unpack
from common.phases import read_confirm, read_receipts
from common.privacy.charge import HeadOf, LedgerRow, SignedCharge
from common.privacy.extract import read_extract, replay
from common.privacy.ledger import Head
from common.receipt import (
    Confirmation,
    RoundReceipt,
    SignedReceipt,
    read_charge,
    read_receipt,
    to_bytes,
)
from common.result import read_result
from common.stored_zip import pack as pack_zip
from common.stored_zip import unpack as unpack_zip
from server import control
from server.config import load_server_config
from server.roster import Roster
from simulations.benchmarks.link import OneTensor
from tests.fuzz.admission import admission_parsers, bundle
from tests.fuzz.parser import Parser, as_file, root, site
from tests.story import told
from tests.unit.common.audit.test_report import report as audit_report
from tests.unit.common.test_result import example

ROOT = Path(__file__).resolve().parents[2]
SCENARIO = ROOT / "simulations" / "scenarios" / "hospital.toml"
CERTIFICATE = ROOT / "tests" / "golden" / "certificate.json"
LEDGER = ROOT / "tests" / "golden" / "ledger_capped.jsonl"
TABLE, CODEC = OneTensor(3), CODECS["fp32"]

SITE = """site = "A"
server = "h.example:443"
[policy]
allowed_signers = ["%s"]
max_epsilon = 4.0
max_delta = 1e-5
[data.notes]
path = "notes.csv"
"""


_DIGEST, _AT = "ab" * 32, "2026-03-04T05:06:07Z"


def _charge() -> SignedCharge:
    head = HeadOf(size=3, root=_DIGEST, signature="30" * 70, public_key="30" * 91)
    row = LedgerRow(
        seq=2, before=_DIGEST, body="{}", hash=_DIGEST, signature="30" * 70, inclusion=(_DIGEST,)
    )
    return SignedCharge(row=row, head=head, since=head, consistency=(_DIGEST,), hand_overs=(row,))


def _receipt() -> SignedReceipt:
    receipt = RoundReceipt(
        job_sha256=_DIGEST,
        round=1,
        closed_at=_AT,
        before="",
        input_sha256=_DIGEST,
        output_sha256=_DIGEST,
        asked=("A",),
        replies=(),
        charges={"A": _charge()},
        heads={"A": _charge().head},
    )
    return SignedReceipt(receipt=receipt, signature="30" * 70, chain="-----BEGIN\n")


def _confirmation() -> Confirmation:
    return Confirmation(job_sha256=_DIGEST, round=1, site="A", head=_charge().head, at=_AT)


def _certificate(data: bytes) -> object:
    chain, *_ = site()
    intermediate = chain[chain.index(b"-----BEGIN", 1) :]
    days_left(data)
    leaf_key(data)
    read_identity(data)
    read_certificate(data)
    return check_site_chain(data + intermediate, root().certificate)


def _pem(kind: str, der: bytes) -> bytes:
    """Armour, so that spoilt bytes reach the parser behind it."""
    return f"-----BEGIN {kind}-----\n{b64encode(der).decode()}\n-----END {kind}-----\n".encode()


def _der(pem: bytes) -> bytes:
    lines = pem.decode().split("-----END")[0].splitlines()
    return b64decode("".join(lines[1:]))


def _frames(data: bytes) -> object:
    """Frames with two bytes of length before each, through an assembler."""
    assembler, at, got = Assembler(_admit), 0, []
    while at + 2 <= len(data):
        size = int.from_bytes(data[at : at + 2], "big")
        got.append(assembler.take(framing.parse(data[at + 2 : at + 2 + size])))
        at += 2 + size
    return got


def _admit(header: Any) -> bool:  # noqa: ANN401 -- protobuf's own class
    framing.require_size(header, 1 << 16)
    return True


def _message(**records: object) -> bytes:
    become_server()
    content: Any = records
    return message_to_bytes(Message(RecordDict(content), 5, "train", group_id="3"))


def _content(read: Callable[[RecordDict], object]) -> Callable[[bytes], object]:
    """Messages without content are told apart before anything reads them."""

    def run(data: bytes) -> object:
        message = message_from_bytes(data)
        return read(message.content) if message.has_content() else None

    return run


def _roster(path: Path) -> object:
    Roster(path).check("A", 1)
    return path


def _server_config(path: Path) -> object:
    return load_server_config(path.parent)


@cache
def _job() -> Job:
    raw = read_toml(SCENARIO)
    raw.pop("simulation", None)
    raw["model"]["sha256"] = "ab" * 32
    raw["data"] = {"name": "notes", "labels": ["x", "y"], "population": {"A": 500, "B": 600}}
    raw["training"]["quorum"] = 2
    return parse(Job, raw, "job")


def _signed_job() -> bytes:
    return sign_job(_job(), Ed25519PrivateKey.from_private_bytes(b"\7" * 32)).to_bytes()


def _job_toml() -> bytes:
    return tomli_w.dumps(_job().model_dump(mode="json", exclude_none=True)).encode()


@cache
def _counting_job() -> Job:
    asked = {"release": ["accuracy"], "hold_out": 0.25, "share": 0.125}
    return _job().model_copy(update={"metrics": MetricsSection.model_validate(asked)})


def _counts() -> RecordDict:
    head = Head(7, "ab" * 32, "cd" * 64, "ef" * 91)
    counts = np.array([5, -3], dtype=np.int64)
    return metric_messages.counts_reply(metric_messages.Counts(counts, "12" * 32, head))


def _roster_json() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        Roster(Path(folder) / "roster.json").enroll(site()[0])
        return (Path(folder) / "roster.json").read_bytes()


def _parquet() -> bytes:
    made = io.BytesIO()
    parquet.write_table(pa.table({"text": ["a, b", "c"], "label": ["x", "y"]}), made)
    return made.getvalue()


@cache
def _evidence() -> bytes:
    none: dict[str, Any] = {"mode": "none", "epsilon": None, "delta": None, "clip_norm": None}
    return told(("A",), 1, **none).bundle()


def _manifest(data: bytes) -> object:
    """Behind the container: the manifest's bytes in a sound one."""
    return open_bundle(pack_zip(unpack_zip(_evidence(), "bundle") | {MANIFEST: data}))


def _bill() -> bytes:
    named = [{"name": name, "version": "1.2.3"} for name in DRAWING]
    return json.dumps({"components": named}).encode()


def _head() -> bytes:
    return LEDGER.read_bytes().splitlines()[-1]


def parsers() -> dict[str, Parser]:
    """All of them, by the name of what they read."""
    chain, key, csr = site()
    events = [{"sampling_rate": 0.1, "noise_multiplier": 1.5, "steps": 3}]
    receipt = json.dumps([1, "ab" * 32, True])
    vector = np.array([1.5, -2.25, 0.5], np.float32)
    frames = list(framing.split(b"body", message_type="train", job_sha256="ab" * 32))
    columns = ColumnMap()
    return {
        "frames": Parser(_frames, b"".join(len(f).to_bytes(2, "big") + f for f in frames)),
        "message": Parser(message_from_bytes, _message(r=ConfigRecord({"round": 3}))),
        "payload": Parser(
            _content(lambda content: unpack(content, TABLE, CODEC)),
            _message(**pack(vector, TABLE, CODEC)),
        ),
        "order": Parser(
            _content(messages.read_order),
            _message(
                job=ConfigRecord({"manifest": _signed_job()}),
                round=ConfigRecord({"round": 2, "receipt": receipt}),
            ),
        ),
        "counts": Parser(
            _content(lambda content: metric_messages.read_counts(content, _counting_job())),
            _message(**_counts()),
        ),
        "closing": Parser(
            _content(messages.read_close),
            _message(
                close=ConfigRecord(
                    {"job_sha256": "ab" * 32, "state": "finished", "final_sha256": ""}
                )
            ),
        ),
        "signed job": Parser(parse_signed_job, _signed_job()),
        "job.toml": Parser(as_file("job.toml", load_job), _job_toml()),
        "site.toml": Parser(
            as_file("site.toml", lambda path: load_home(path.parent, "A")),
            (SITE % ("ab" * 32)).encode(),
        ),
        "server.toml": Parser(
            as_file("server.toml", _server_config),
            b'name = "f"\nlisten = "h:1"\naddress = "h.example:1"\n',
        ),
        "bundle": Parser(as_file("A.bundle", read_bundle), bundle().to_bytes()),
        "roster": Parser(as_file("roster.json", _roster), _roster_json()),
        "control request": Parser(control._parse, b'{"command": "show", "job": "x"}'),
        "certificate": Parser(_certificate, chain),
        "certificate in DER": Parser(
            lambda data: _certificate(_pem("CERTIFICATE", data)), _der(chain)
        ),
        "request": Parser(pki.read_csr, csr),
        "request in DER": Parser(
            lambda data: pki.read_csr(_pem("CERTIFICATE REQUEST", data)), _der(csr)
        ),
        "key": Parser(load_key, key),
        "public key": Parser(as_file("site.pem", read_public), chain),
        "ledger": Parser(lambda data: replay(read_extract(data)), LEDGER.read_bytes()),
        "anchor": Parser(
            as_file("account.anchor", lambda path: Anchor(path.with_suffix(".db")).read()), _head()
        ),
        "audit report": Parser(as_file("report.json", read_report), audit_report().to_bytes()),
        "events": Parser(as_file("events.json", read_events), json.dumps(events).encode()),
        "records.csv": Parser(
            as_file("r.csv", lambda path: list(read_records(path, columns))),
            b'text,label\n"a, b",x\nc,y\n',
        ),
        "records.jsonl": Parser(
            as_file("r.jsonl", lambda path: list(read_records(path, columns))),
            b'{"text": "a", "label": "x"}\n{"text": "b", "label": 3}\n',
        ),
        "records.csv.gz": Parser(
            as_file("r.csv.gz", lambda path: list(read_records(path, columns))),
            gzip.compress(b"text,label\na,x\n", mtime=0),
        ),
        "records.parquet": Parser(
            as_file("r.parquet", lambda path: list(read_records(path, columns))), _parquet()
        ),
        "evidence": Parser(open_bundle, _evidence()),
        "evidence's manifest": Parser(_manifest, unpack_zip(_evidence(), "bundle")[MANIFEST]),
        "privacy certificate": Parser(read_privacy_certificate, CERTIFICATE.read_bytes()),
        "bill of materials": Parser(installed, _bill()),
        "charge": Parser(read_charge, to_bytes(_charge())),
        "receipt": Parser(read_receipt, to_bytes(_receipt())),
        "receipts": Parser(
            _content(read_receipts),
            _message(receipts=ConfigRecord({"signed": [to_bytes(_receipt())]})),
        ),
        "confirmation": Parser(
            _content(read_confirm),
            _message(confirm=ConfigRecord({"unsigned": to_bytes(_confirmation())})),
        ),
        "result.json": Parser(as_file("result.json", read_result), json.dumps(example()).encode()),
        **admission_parsers(),
    }
