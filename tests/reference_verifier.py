"""A second reading of a bundle of evidence, which imports nothing of ours.

Written from docs/evidence.md: bytes by struct and zlib, JSON by the standard library, certificates
link by link, Merkle proofs by the recursive definitions of RFC 6962, epsilon by dp_accounting. It
answers with the first fault that it finds, in its own words, or with nothing.
"""

import datetime as dt
import hashlib
import html
import io
import itertools
import json
import math
import re
import struct
import zipfile
import zlib
from functools import lru_cache, reduce
from typing import Any

import dp_accounting as dpa
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import ExtendedKeyUsageOID
from dp_accounting.pld import privacy_loss_distribution
from dp_accounting.rdp import RdpAccountant

SHA = ec.ECDSA(hashes.SHA256())


class Fault(Exception):
    """What does not hold."""


def need(holds: bool, words: str) -> None:
    if not holds:
        raise Fault(words)


def fault_of(data: bytes, root_pem: bytes, adapter: bytes | None = None) -> str:
    """The first fault; empty for a bundle whose every claim holds under the root."""
    try:
        _verify(data, x509.load_pem_x509_certificates(root_pem))
        if adapter is not None:
            weighed(adapter, members(data))
    except Fault as fault:
        return str(fault)
    except (
        InvalidSignature, KeyError, IndexError, ValueError, TypeError, AttributeError,
        zipfile.BadZipFile, NotImplementedError, struct.error, EOFError, OSError, StopIteration,
    ) as error:  # fmt: skip
        return f"unreadable: {error!r}"
    return ""


def _verify(data: bytes, root: list[x509.Certificate]) -> None:
    files = members(data)
    manifest = json.loads(files["manifest.json"])
    seal = json.loads(files["manifest.sig"])
    need(canonical(seal) == files["manifest.sig"], "seal is not canonical")
    need(canonical(manifest) == files["manifest.json"], "manifest is not canonical")
    need((manifest["format"], manifest["version"]) == ("veiltune-evidence", 1), "format")
    chain = seal["chain"].encode()
    need(sha(chain) == manifest["chain_sha256"], "other chain")
    server_key(chain, root, when(manifest["made_at"])).verify(
        bytes.fromhex(seal["signature"]), b"veiltune evidence v1\n" + files["manifest.json"], SHA
    )
    named = {n: sha(d) for n, d in files.items() if n not in ("manifest.json", "manifest.sig")}
    need(named == manifest["files"], "files are not those of the manifest")
    job = signed_job(files["job.json"], manifest)
    result = json.loads(files["result.json"])
    receipts = rounds_of(files, job, result, manifest, root)
    counting = receipts[-1] if "metrics" in job else None
    rounds = [receipt for receipt in receipts if receipt is not counting]
    asked = {site: [site in r["asked"] for r in rounds] for site in job["data"]["population"]}
    unended = {site for site in asked if f"sites/{site}/ending.json" not in files}
    for site in asked:
        pem = files[f"sites/{site}/certificate.pem"]
        site_story(site, receipts, pem, job, result, root)
        said = files.get(f"sites/{site}/ending.json")
        if said is not None:
            last_word(site, said, receipts, pem, job, result, root)
    own(receipts, {s: json.loads(files[f"sites/{s}/ending.json"]) for s in {*asked} - unended})
    for site in unended:
        asked[site] = perhaps(site, receipts, asked[site], job)
    claims(job, result, manifest, asked, {*counting["asked"], *unended} if counting else set())
    if counting:
        counts(counting, job, result)
    need((result["metrics"] is None) == (counting is None), "counts")
    documents(files, job, result, receipts)
    if "roster.json" in files:
        rostered(files, list(asked), receipts[-1]["heads"], root)


def perhaps(
    site: str, receipts: list[dict[str, Any]], asked: list[bool], job: dict[str, Any]
) -> list[bool]:
    """Without its last word a site may have been asked in every round after its last charge."""
    last = max((r["round"] for r in receipts if site in r["charges"]), default=0)
    rounds = range(1, job["training"]["rounds"] + 1)
    return [n > last or asked[n - 1] for n in rounds if n > last or n <= len(asked)]


def weighed(adapter: bytes, files: dict[str, bytes]) -> None:
    """The adapter's file: eight bytes of length, a JSON header, numbers; a drawn A is believed."""
    result, job = json.loads(files["result.json"]), json.loads(files["job.json"])["job"]["adapter"]
    need(sha(adapter) == result["adapter_sha256"], "another file")
    (length,) = struct.unpack_from("<Q", adapter)
    header, start = json.loads(adapter[8 : 8 + length]), 8 + length
    header.pop("__metadata__", None)
    moving, shapes, seen = {}, {}, set()
    still = {"ffa": "A", "head": "AB"}.get(job["method"], "")
    still = still.replace("A", "") if job.get("init") == "svd" else still
    for name, said in header.items():
        need(said["dtype"] == "F32", "no float32")
        need(name.startswith("base_model.model."), "a name that no loader looks for")
        first, last = said["data_offsets"]
        raw = adapter[start + first : start + last]
        module, kind = name[16:-14], name[-8:-7]  # as in .query.lora_A.weight
        if re.fullmatch(r"[.].+[.]lora_[AB][.]weight", name[16:]):
            known = {target for target in job["targets"] if module.endswith("." + target)}
            full = f"{name[:-7]}.default.weight"
            shapes[module, kind] = said["shape"]
            need("B" not in still or kind == "A" or not any(raw), "a B that nobody trains")
        else:
            known = {head for head in job["head"] if f".{head}." in name[16:]}
            full, kind = name, ""
            for head in known:
                full = full.replace(f".{head}.", f".{head}.modules_to_save.default.", 1)
        need(bool(known), f"no tensor of the job: {name}")
        seen |= known
        if not kind or kind not in still:
            moving[full] = raw
    need(seen >= {*job["head"], *job["targets"]}, "a part is missing")
    for module in {module for module, _ in shapes}:
        (rows, k), (d, columns) = shapes[module, "A"], shapes[module, "B"]
        need(rows == columns == job["rank"] and min(k, d) > 0, f"{module}: shape")
    vector = b"".join(moving[name] for name in sorted(moving))
    need(sha(vector) == result["vector_sha256"], "numbers that no round made")


def members(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        files = {info.filename: archive.read(info) for info in archive.infolist()}
    body, directory = b"", b""
    for name in sorted(files):
        content, raw = files[name], name.encode("ascii")
        need(bool(re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_./-]*", name)), f"name {name}")
        need(".." not in name and "//" not in name, f"name {name}")
        common = struct.pack(
            "<HHHHHIIIHH", 20, 0, 0, 0, 33, zlib.crc32(content), len(content), len(content),
            len(raw), 0,
        )  # fmt: skip
        directory += b"PK\x01\x02" + struct.pack("<BB", 20, 3) + common
        directory += struct.pack("<HHHII", 0, 0, 0, 0o100600 << 16, len(body)) + raw
        body += b"PK\x03\x04" + common + raw + content
    end = struct.pack(
        "<4s4H2IH", b"PK\x05\x06", 0, 0, len(files), len(files), len(directory), len(body), 0
    )
    need(body + directory + end == data, "not the one ZIP of its files")
    return files


def signed_job(raw: bytes, manifest: dict[str, Any]) -> dict[str, Any]:
    body = raw[len(b'{"job":') : raw.rindex(b',"signature":"')]
    signed = json.loads(raw)
    need(sha(body) == manifest["job_sha256"], "another job")
    need(signed["signer"] == manifest["operator"], "another operator")
    key = ed25519.Ed25519PublicKey.from_public_bytes(bytes.fromhex(signed["signer"]))
    key.verify(bytes.fromhex(signed["signature"]), b"veiltune job v1\n" + body)
    return dict(signed["job"])


def rounds_of(
    files: dict[str, bytes],
    job: dict[str, Any],
    result: dict[str, Any],
    manifest: dict[str, Any],
    root: list[x509.Certificate],
) -> list[dict[str, Any]]:
    names = sorted((n for n in files if n.startswith("rounds/")), key=lambda n: (len(n), n))
    before, output, receipts = "", None, []
    for number, name in enumerate(names, start=1):
        signed = json.loads(files[name])
        need(canonical(signed) == files[name], f"{name} is not canonical")
        receipt = signed["receipt"]
        is_counting = "metrics" in job and number == len(names)
        number = job["training"]["rounds"] + 1 if is_counting else number
        need(name == f"rounds/{number:05}.json" and receipt["round"] == number, f"gap at {number}")
        need(receipt["before"] == before, f"round {number} follows another")
        need(receipt["job_sha256"] == manifest["job_sha256"], f"round {number} of another job")
        need(output in (None, receipt["input_sha256"]), f"round {number} starts elsewhere")
        key = server_key(signed["chain"].encode(), root, when(receipt["closed_at"]))
        message = b"veiltune round receipt v1\n" + canonical(receipt)
        key.verify(bytes.fromhex(signed["signature"]), message, SHA)
        replies(receipt, job, 0 if is_counting else job["training"]["quorum"])
        before, output = sha(files[name]), receipt["output_sha256"]
        receipts.append(receipt)
    stamps = [*(receipt["closed_at"] for receipt in receipts), manifest["made_at"]]
    need(sorted(stamps) == stamps, "out of order in time")
    ending(receipts[:-1] if "metrics" in job else receipts, job, result)
    return receipts


def counts(receipt: dict[str, Any], job: dict[str, Any], result: dict[str, Any]) -> None:
    """What the result makes of the counts, beside what was signed of them."""
    stated, asked = result["metrics"], job["metrics"]
    given = {reply["site"] for reply in receipt["replies"]}
    need(receipt["input_sha256"] == result["vector_sha256"], "counts of another adapter")
    need(receipt["output_sha256"] == result["vector_sha256"], "counts of another adapter")
    need({one["site"] for one in stated["sites"]} == given, "counts of others")
    need(set(receipt["asked"]) - given <= set(stated["silent"]), "silent sites left out")
    need(stated["hold_out"] == asked["hold_out"], "hold-out")
    need({h["name"] for h in stated["histograms"]} == set(asked["release"]), "histograms")
    most = asked.get("records_per_unit", 1)
    need(stated["records_per_unit"] == most, "cap of a unit")
    # A record adds at most ``most`` to a histogram, all of a unit's perhaps to the same bin.
    moved = most * math.sqrt(sum(h["most"] ** 2 for h in stated["histograms"]))
    noise = result["privacy"]["metrics_noise_multiplier"]
    need(math.isclose(stated["sensitivity"], moved, rel_tol=1e-9), "sensitivity")
    need(math.isclose(stated["deviation"], noise * moved, rel_tol=1e-6), "noise on the counts")


def replies(receipt: dict[str, Any], job: dict[str, Any], quorum: int) -> None:
    asked, sites = receipt["asked"], job["data"]["population"]
    need(asked == sorted(set(asked)) and set(asked) <= set(sites), "asked strangers")
    named = [reply["site"] for reply in receipt["replies"]]
    need(len(named) == len(set(named)) and set(named) <= set(asked), "replies of strangers")
    need(set(receipt["charges"]) <= set(asked) and set(receipt["heads"]) <= set(sites), "charges")
    accepted = [reply["site"] for reply in receipt["replies"] if reply["accepted"]]
    need(set(accepted) <= set(receipt["charges"]), "an update without its charge")
    need(len(accepted) >= quorum, "no quorum")


def ending(receipts: list[dict[str, Any]], job: dict[str, Any], result: dict[str, Any]) -> None:
    rows, training = result["rounds"], job["training"]
    need([row["round"] for row in rows] == [r["round"] for r in receipts], "other rounds")
    score = [row["accuracy"] if row["entity_f1"] is None else row["entity_f1"] for row in rows]
    best, stop, patience = 1, None, training.get("patience")
    for number, value in enumerate(score, start=1):
        best = number if value > score[best - 1] else best
        if stop is None and (number == training["rounds"] or number - best >= (patience or 10**9)):
            stop = number
    need(stop == len(rows), "ended early or late")
    kept = len(rows) if patience is None else best
    need(result["kept_round"] in (None, kept), "kept another round")
    need(result["vector_sha256"] == receipts[kept - 1]["output_sha256"], "another adapter")


def site_story(
    site: str,
    receipts: list[dict[str, Any]],
    pem: bytes,
    job: dict[str, Any],
    result: dict[str, Any],
    root: list[x509.Certificate],
) -> None:
    last: dict[str, Any] | None = None
    for receipt in receipts:
        keys = site_keys(site, pem, root, when(receipt["closed_at"]))
        charge = receipt["charges"].get(site)
        if charge is not None:
            since = charge["since"]
            need(last is None or (since is not None and entries(since) == entries(last)), "since")
            one_charge(charge, keys)
            begun(charge, site, job, result)
            entry = json.loads(charge["row"]["body"])
            planned(entry, receipt, job, result)
            most = due(site, receipts, job, receipt["round"])
            need(entry["job_steps"] <= most, "more steps than it was asked for")
            last = charge["head"]
        head = receipt["heads"].get(site)
        if head is not None:
            need(last is None or entries(head) == entries(last), "head without a proof")
            signed_head(head, keys)
        need(last is None or head is not None, "head gone")
        last = head
    need(last is not None, "no head")


def due(site: str, receipts: list[dict[str, Any]], job: dict[str, Any], last: int) -> int:
    """Steps that a site was asked for up to a round; counts are none."""
    training = job["training"]
    rounds = [r for r in receipts if r["round"] <= min(last, training["rounds"])]
    return int(sum(site in r["asked"] for r in rounds) * training["local_steps"])


def rostered(
    files: dict[str, bytes], sites: list[str], heads: dict[str, Any], root: list[x509.Certificate]
) -> None:
    """Each site's newest head is under a key that the root's own roster names."""
    said = json.loads(files["roster.json"])
    message = b"veiltune roster v1\n" + canonical(said["document"])
    signature = bytes.fromhex(said["signature"])
    own = next(r for r in root if r.fingerprint(hashes.SHA256()).hex() == said["document"]["root"])
    own.public_key().verify(signature, message, SHA)  # type: ignore[union-attr,call-arg,arg-type]
    for site in sites:
        ending = files.get(f"sites/{site}/ending.json")
        head = heads[site] if ending is None else json.loads(ending)["head"]
        key = sha(bytes.fromhex(head["public_key"]))
        need(key in said["document"]["sites"].get(site, ()), "a site that the root does not know")


def last_word(
    site: str,
    raw: bytes,
    receipts: list[dict[str, Any]],
    pem: bytes,
    job: dict[str, Any],
    result: dict[str, Any],
    root: list[x509.Certificate],
) -> None:
    """All that the site's ledger charged the job, by the entry that ended it."""
    ending, last = json.loads(raw), receipts[-1]
    need(canonical(ending) == raw, "ending is not canonical")
    one_charge(ending, site_keys(site, pem, root, when(last["closed_at"])))
    begun(ending, site, job, result)
    known, since = last["heads"].get(site), ending["since"]
    need(known is None or (since and entries(since) == entries(known)), "ending of another ledger")
    entry = json.loads(ending["row"]["body"])
    need(entry["kind"] == "closed" and entry["is_final"], "no ending")
    need(entry["job_sha256"] == last["job_sha256"], "ending of another job")
    need(entry["steps"] <= due(site, receipts, job, last["round"]), "steps that nobody asked for")
    charges = [r["charges"][site] for r in receipts if site in r["charges"]]
    shown = [json.loads(charge["row"]["body"])["job_steps"] for charge in charges]
    need(entry["steps"] >= max(shown, default=0), "fewer steps")
    asked = [site in r["asked"] for r in receipts if r["round"] > job["training"]["rounds"]]
    need(entry["counts"] <= sum(asked), "counts that nobody asked for")


def begun(charge: dict[str, Any], site: str, job: dict[str, Any], result: dict[str, Any]) -> None:
    """What the entries say that named a key."""
    unit = job["privacy"]["unit"]
    for row in charge["hand_overs"]:
        body = json.loads(row["body"])
        need(result["privacy"]["seeded"] or not body["is_ephemeral"], "a key for the ledger alone")
        if body["kind"] == "created":
            need(body["site"] == site, "another site's ledger")
            need(body["unit"] in ("", unit) or job["privacy"]["mode"] == "none", "another unit")


def own(receipts: list[dict[str, Any]], endings: dict[str, Any]) -> None:
    """No two sites show the same ledger."""
    shown = [item for r in receipts for item in (*r["charges"].items(), *r["heads"].items())]
    owner: dict[str, str] = {}
    for site, one in [*shown, *endings.items()]:
        head = one.get("head", one)
        rows = [row["hash"] for row in one.get("hand_overs", ()) if row["seq"] == 0]
        for mark in (head["root"], head["public_key"], *rows):
            need(owner.setdefault(mark, site) == site, "one ledger of two sites")


def one_charge(charge: dict[str, Any], keys: set[str]) -> None:
    head, since = charge["head"], charge["since"]
    signed_head(head, keys)
    key, first = None, 0
    if since is not None:
        key, first = since["public_key"], since["size"]
        continued(since, head, charge["consistency"])
    else:
        need(not charge["consistency"], "proof from nowhere")
    for link in charge["also"]:
        continued(link["since"], head, link["consistency"])
    rows = sorted([*charge["hand_overs"], charge["row"]], key=lambda row: int(row["seq"]))
    need(charge["hand_overs"] == [r for r in rows if r is not charge["row"]], "order")
    for row in rows:
        body = json.loads(row["body"])
        need(body["seq"] == row["seq"], "number")
        before, digest = bytes.fromhex(row["before"]), bytes.fromhex(row["hash"])
        said = b"veiltune ledger entry v1\n" + before + row["body"].encode()
        need(hashlib.sha256(said).digest() == digest, "row's hash")
        if row is not charge["row"]:
            need(row["seq"] >= first, "named before")
            need(body["kind"] == ("created" if key is None else "rekeyed"), "kind")
            if key is not None and body["endorsement"]:
                word = b"veiltune ledger hand-over v1\n" + before
                word += bytes.fromhex(body["public_key"])
                public(key).verify(bytes.fromhex(body["endorsement"]), word, SHA)
            elif key is not None:
                need(bool(body["accepted_by"]), "a key that nobody endorsed")
            key = body["public_key"]
        need(key is not None, "no key")
        signature = bytes.fromhex(row["signature"])
        public(str(key)).verify(signature, b"veiltune ledger signature v1\n" + digest, SHA)
        leaf = hashlib.sha256(b"\x00" + digest).digest()
        path = [bytes.fromhex(part) for part in row["inclusion"]]
        need(row["seq"] < head["size"], "beyond its head")
        need(climbed(row["seq"], head["size"], leaf, path).hex() == head["root"], "not included")
    need(key == head["public_key"], "head by another key")


def continued(since: dict[str, Any], head: dict[str, Any], consistency: list[str]) -> None:
    signed_head(since, {since["public_key"]})
    proof = [bytes.fromhex(part) for part in consistency]
    old, new = bytes.fromhex(since["root"]), bytes.fromhex(head["root"])
    need(since["size"] <= head["size"], "shrank")
    need(grown(since["size"], head["size"], proof, True, old) == (old, new), "forked")


def planned(
    entry: dict[str, Any], receipt: dict[str, Any], job: dict[str, Any], result: dict[str, Any]
) -> None:
    privacy, said, terms = job["privacy"], entry["charge"], entry["terms"]
    need(entry["kind"] == "reserved", "no charge")
    for name in ("job_sha256", "round", "input_sha256"):
        need(entry[name] == receipt[name], f"charge of another {name}")
    is_counting = receipt["round"] > job["training"]["rounds"]
    need(entry.get("purpose", "update") == ("metrics" if is_counting else "update"), "purpose")
    need(said["steps"] == (1 if is_counting else job["training"]["local_steps"]), "steps")
    need(said["sampling_rate"] == (1 if is_counting else privacy["sampling_rate"]), "rate")
    noise = result["privacy"]["metrics_noise_multiplier" if is_counting else "noise_multiplier"]
    need(math.isclose(said["noise_multiplier"], noise, rel_tol=1e-6), "noise")
    need(terms["unit"] == privacy["unit"] and terms["delta"] == privacy.get("delta"), "terms")
    need(terms.get("unit_cap") == privacy.get("unit_cap"), "cap")


def claims(
    job: dict[str, Any],
    result: dict[str, Any],
    manifest: dict[str, Any],
    asked: dict[str, Any],
    counted: set[str],
) -> None:
    privacy, steps, stated = job["privacy"], job["training"]["local_steps"], result["privacy"]
    need(result["job_sha256"] == manifest["job_sha256"], "result of another job")
    need(result["name"] == job["job"]["name"], "result of another name")
    need(result["grid"] == "link" or manifest["kind"] == "SIMULATION", "result of another grid")
    for software in (manifest["software"], "veiltune " + stated["accountant_version"][14:]):
        need(bool(re.fullmatch(VERSION, software)), "words in place of a version")
    need(sorted(s["name"] for s in result["sites"]) == sorted(asked), "result of other sites")
    need(stated["seeded"] == (manifest["kind"] == "SIMULATION"), "kind")
    for name in ("mode", "unit", "unit_cap", "sampling_rate", "clip_norm", "delta"):
        need(stated[name] == privacy.get(name), f"mechanism: {name}")
    need(stated["local_steps"] == steps, "mechanism: steps")
    said, told = result["hold_out"], job["evaluation"]
    need(said["disjoint_because"] == told.get("disjoint_because"), "hold-out's declaration")
    named = told["data"].rpartition("/")[2] if told["data"].startswith("/") else told["data"]
    need((said["data"], said["split"]) == (named, told["split"]), "another hold-out")
    need(said["checked_by"] == "nobody", "a hold-out that somebody checked")
    if privacy["mode"] == "none":
        return
    rate, noise, delta = stated["sampling_rate"], stated["noise_multiplier"], stated["delta"]
    beside = stated["metrics_noise_multiplier"]
    need((beside is None) == ("metrics" not in job), "noise of counts")
    whole = by_pld(rate, noise, job["training"]["rounds"] * steps, delta, beside)
    need(whole <= privacy["epsilon"] + 0.01, "plan costs too much")
    need(whole >= 0.97 * privacy["epsilon"], "plan costs too little")
    if beside is not None:
        share = job["metrics"]["share"]
        cost = by_pld(rate, noise, 0, share * delta, beside)
        need(math.isclose(cost, share * privacy["epsilon"], rel_tol=0.03), "counts cost otherwise")
    for site in result["sites"]:
        need(site["steps"] >= sum(asked[site["name"]]) * steps, "fewer steps than asked")
        need(site["delta"] == delta, "delta")
        need(site["counts"] >= (site["name"] in counted), "counts left out")
        mine = beside if site["counts"] else None
        found = by_pld(rate, noise, site["steps"], delta, mine)
        need(math.isclose(site["epsilon"], found, rel_tol=0.004, abs_tol=0.004), "epsilon")
        need(site["epsilon"] <= by_rdp(rate, noise, site["steps"], delta, mine), "above RDP")
    for number, row in enumerate(result["rounds"], start=1):
        most = max(sum(them[:number]) for them in asked.values())
        need(row["epsilon"] >= by_pld(rate, noise, most * steps, delta) - 0.004, "round's epsilon")
        need(row["epsilon"] <= max(s["epsilon"] for s in result["sites"]) + 1e-6, "above the end")


VERSION = r"veiltune (unknown|\d+([.]\d+){0,3}((a|b|rc|[.]post|[.]dev)\d+)*([+][0-9a-z.]{1,20})?)"
NAMES = re.compile(
    r"documents/(index\.(html|pdf)|model-card\.md|(receipts|refusals|policies)\.html"
    r"|sbom\.cdx\.json|(sites/[A-Za-z0-9][A-Za-z0-9_-]*/)?certificate\.(json|html|pdf)"
    r"|sites/[A-Za-z0-9][A-Za-z0-9_-]*/data-card\.(json|html))"
)


def documents(
    files: dict[str, bytes],
    job: dict[str, Any],
    result: dict[str, Any],
    receipts: list[dict[str, Any]],
) -> None:
    named = [name for name in files if name.startswith("documents/")]
    need(all(NAMES.fullmatch(name) for name in named), "a document of another name")
    promises = [name for name in named if "/certificate." in name]
    need(result["private"] or not promises, "a certificate of nothing")
    for name in named:
        if name.endswith("/data-card.json"):
            carded(json.loads(files[name]), name.split("/")[2], job, result)
    for name in named:
        if name.endswith(".html"):
            paged(name, files, job, result, receipts)
        if name.endswith(".pdf"):
            printed(name, files)
    rows = [row for r in receipts for c in r["charges"].values() for row in c["hand_overs"]]
    entries = [json.loads(row["body"]) for row in rows]
    caps = {entry["site"]: entry["cap"] for entry in entries if entry["kind"] == "created"}
    for name in promises:
        beside = name.rpartition(".")[0] + ".json"
        need(beside in files, "a page of a certificate alone")
        site = re.sub("^documents/(sites/)?|/?certificate.*$", "", name)
        certified(json.loads(files[beside]), site, job, result, caps)
        audited(json.loads(files[beside])["audits"], job, result, receipts)


def paged(
    name: str,
    files: dict[str, bytes],
    job: dict[str, Any],
    result: dict[str, Any],
    receipts: list[dict[str, Any]],
) -> None:
    """Each epsilon that a page states is one of the JSON's, rounded up; no round is missing."""
    text = re.sub(r"<style.*?</style>|<[^>]*>", " ", files[name].decode(), flags=re.DOTALL)
    beside = files.get(name.removesuffix("html") + "json", b"{}")
    known = epsilons([job, result, json.loads(beside)])
    for said in re.findall(r"(?:ε|epsilon)[\s=\xa0]*(\d[\d,]*(?:[.]\d+)?)", text):
        shown = float(said.replace(",", ""))
        need(any(n - 1e-6 <= shown <= 1.01 * n + 0.01 for n in known), f"{name}: epsilon {said}")
    if name == "documents/receipts.html":
        for receipt in receipts:
            need(receipt["output_sha256"][:16] in text, f"{name}: a round is missing")
        for head in receipts[-1]["heads"].values():
            need(head["root"] in text, f"{name}: a ledger is missing")


def printed(name: str, files: dict[str, bytes]) -> None:
    """Whatever a PDF draws, line by line, is on the page beside it; its letters are believed."""
    page = re.sub(r"<style.*?</style>|<[^>]*>", "", files[name[:-3] + "html"].decode(), flags=re.S)
    beside = re.sub(r"\s", "", html.unescape(page))
    data = files[name]
    objects = formed(name, data)
    named = re.findall(
        rb"\n/Producer [(]fpdf2 ([^, ]+), fonttools ([^, ]+), pymupdf-fonts ([^, ]+)[)]\n", data
    )
    need(len(named) == 1 and data.count(b"/Producer") == 1, f"{name}: no PDF of ours")
    others = {d for n, d in files.items() if n.endswith(".pdf")}
    told = {re.findall(rb"/Producer [(].*[)]", one)[0] for one in others}
    need(len(told) == 1, "PDFs by several versions")
    if "documents/sbom.cdx.json" in files:
        parts = json.loads(files["documents/sbom.cdx.json"])["components"]
        known = {part["name"]: part["version"].encode() for part in parts}
        libraries = ("fpdf2", "fonttools", "pymupdf-fonts")
        need(tuple(known[n] for n in libraries) == named[0], f"{name}: by what is not installed")
    letters = {}
    for font, number in re.findall(rb"/F(\d) (\d+) 0 R", data):
        (table,) = re.findall(rb"/ToUnicode (\d+) 0 R", objects[number])
        pairs = re.findall(rb"<([0-9A-F]{4})> <([0-9A-F]{4,8})>", objects[table])
        letters[font] = {
            int(a, 16): bytes.fromhex(b.decode()).decode("utf-16-be") for a, b in pairs
        }
    pages = re.findall(rb"/Contents (\d+) 0 R", data)
    need(len(pages) > 0, f"{name}: no page")
    (kids,) = re.findall(rb"/Kids \[([^]]*)\]", data)
    need(kids.count(b" 0 R") == len(pages), f"{name}: other pages")
    for number in pages:
        stream = objects[number].partition(b"stream\n")[2].removesuffix(b"\nendstream")
        font = b""
        drawn = rb"/F(\d) [\d.]+ Tf|\(((?:[^\\()]|\\.)*)\) Tj"
        for chosen, raw in re.findall(drawn, zlib.decompress(stream), flags=re.DOTALL):
            font = chosen or font
            said = re.sub(rb"\\(.)", _escaped, raw, flags=re.DOTALL)
            codes = struct.unpack(f">{len(said) // 2}H", said)
            line = re.sub(r"\s", "", "".join(letters[font][code] for code in codes))
            is_number = re.fullmatch(r"\d+/?\d*", line) or line == "\N{EN DASH}"
            need(bool(is_number) or line in beside, f"{name}: draws {line[:60]}")


def formed(name: str, data: bytes) -> dict[bytes, bytes]:
    """A PDF's objects by number: in order, the table leads to each, and nothing is between them."""
    body, _, tail = data.rpartition(b"\nxref\n0 ")
    body += b"\n"
    found = list(re.finditer(rb"(?<=\n)(\d+) 0 obj\n(.*?)\nendobj\n", body, flags=re.DOTALL))
    need([int(one[1]) for one in found] == list(range(1, len(found) + 1)), f"{name}: numbers")
    need(len(body[: found[0].start()].splitlines()) == 2, f"{name}: words before its objects")
    need(
        all(a.end() == b.start() for a, b in itertools.pairwise(found))
        and found[-1].end() == len(body),
        f"{name}: words between its objects",
    )
    rows = "".join(f"{one.start():010} 00000 n \n" for one in found)
    due = f"{len(found) + 1}\n0000000000 65535 f \n{rows}trailer\n<<\n".encode()
    need(tail.startswith(due), f"{name}: its table")
    end = f">>\nstartxref\n{len(body)}\n%%EOF\n".encode()
    need(tail.endswith(end) and tail.count(b"trailer") == 1, f"{name}: its end")
    for one in found:
        said, _, stream = one[2].partition(b"\nstream\n")
        if b"/FlateDecode" in said:
            packer = zlib.decompressobj()
            packer.decompress(stream.removesuffix(b"\nendstream"), 2**24)
            need(packer.eof and not packer.unused_data, f"{name}: a stream's end")
    return {one[1]: one[2] for one in found}


def _escaped(found: re.Match[bytes]) -> bytes:
    return {b"r": b"\r", b"n": b"\n"}.get(found[1], found[1])


def epsilons(tree: Any, key: str = "") -> list[float]:  # noqa: ANN401
    """Every number of a document that is called an epsilon, or by an accountant's name."""
    if isinstance(tree, dict):
        return [number for key, part in tree.items() for number in epsilons(part, key)]
    if isinstance(tree, list):
        return [number for part in tree for number in epsilons(part, key)]
    is_one = "epsilon" in key or key in ("pld", "prv", "rdp", "cap_figure", "lower_bound")
    return [float(tree)] if is_one and isinstance(tree, int | float) else []


def carded(card: dict[str, Any], site: str, job: dict[str, Any], result: dict[str, Any]) -> None:
    due = {s["name"]: (s["epsilon"], s["delta"]) for s in result["sites"]}[site]
    claim = due if result["private"] else (None, None)
    need((card["epsilon"], card["delta"]) == claim, "data card's epsilon")
    need(card["site"] == site and card["job_sha256"] == result["job_sha256"], "another's card")
    need(card["declared_population"] == job["data"]["population"][site], "card's population")
    need(card["labels"] == job["data"]["labels"], "card's labels")


def certified(
    certificate: dict[str, Any],
    of: str,
    job: dict[str, Any],
    result: dict[str, Any],
    caps: dict[str, dict[str, Any]],
) -> None:
    need(certificate["job"]["sha256"] == result["job_sha256"], "certificate of another job")
    need(certificate["scope"] == ("site" if of else "job"), "certificate of another scope")
    due = {site["name"]: site for site in result["sites"] if of in ("", site["name"])}
    need([s["name"] for s in certificate["sites"]] == list(due), "certificate of other sites")
    for site in certificate["sites"]:
        site_certified(site, due[site["name"]], job, result, caps.get(site["name"]))
    promise, policy = certificate["promise"], certificate["budget_policy"]
    most, delta = max(site["epsilon"] for site in due.values()), result["privacy"]["delta"]
    need((promise["epsilon"], promise["delta"]) == (most, delta), "certificate's promise")
    need(promise["unit"] == job["privacy"]["unit"], "certificate's unit")
    agreed = (job["privacy"]["epsilon"], job["privacy"]["delta"])
    need((policy["job_epsilon"], policy["job_delta"]) == agreed, "certificate's budget")
    stated = certificate["mechanism"]
    for name in ("noise_multiplier", "sampling_rate", "clip_norm"):
        need(stated[name] == result["privacy"][name], f"certificate's {name}")
    worded(promise)
    for accountant in certificate["accountants"]:
        for software in accountant["software"].split("; the run's own was "):
            name, version = software.split(" ")
            need(name in ("dp-accounting", "opacus"), "an accountant that nobody knows")
            need(bool(re.fullmatch(VERSION, f"veiltune {version}")), "words in place of a version")
    use, told = certificate["utility"], job["evaluation"].get("disjoint_because")
    need(use["disjoint_because"] == told, "certificate's hold-out")
    need("checked by nobody" in use["disjointness"] or told is None, "a checked hold-out")
    need("Nobody declared" in use["disjointness"] or told is not None, "an undeclared hold-out")
    together(certificate["known_to_several_sites"], result)


def audited(
    audits: list[dict[str, Any]],
    job: dict[str, Any],
    result: dict[str, Any],
    receipts: list[dict[str, Any]],
) -> None:
    """Each is of what all steps would cost, and of code that its site signed a charge under."""
    privacy, training = result["privacy"], job["training"]
    rate, noise, delta = (privacy[n] for n in ("sampling_rate", "noise_multiplier", "delta"))
    for audit in audits:
        whole = by_pld(rate, noise, training["rounds"] * training["local_steps"], delta)
        charges = [r["charges"].get(audit["site"]) for r in receipts]
        bodies = [json.loads(charge["row"]["body"]) for charge in charges if charge is not None]
        need(
            audit["code_sha256"] in {body["code_sha256"] for body in bodies}, "audit of other code"
        )
        need(math.isclose(audit["epsilon"], whole, rel_tol=0.004), "audit of another claim")
        need(audit["lower_bound"] <= audit["epsilon"], "refuted")
        need(1e-9 <= audit["significance"] <= 0.05, "audit that says nothing")
        need(audit["verdict"] == "consistent with the claim", "an audit that is no verdict")
        alike = [a for a in audits if (a["name"], a["site"]) == (audit["name"], audit["site"])]
        need(len(alike) <= audit["runs"] and alike.count(audit) == 1, "one audit more than once")


def site_certified(
    site: dict[str, Any],
    due: dict[str, Any],
    job: dict[str, Any],
    result: dict[str, Any],
    cap: dict[str, Any] | None,
) -> None:
    need(site["epsilon"] == due["epsilon"] and site["delta"] == due["delta"], "epsilon")
    need((site["steps"], site["releases_of_counts"]) == (due["steps"], due["counts"]), "steps")
    need(site["population"] == job["data"]["population"][site["name"]], "population")
    is_record = job["privacy"]["unit"] == "record"
    person = site["person_epsilon"]
    need(person >= due["epsilon"] if is_record else person == due["epsilon"], "person")
    privacy, figures, life = result["privacy"], site["figures"], site["lifetime"]
    beside = privacy["metrics_noise_multiplier"] if due["counts"] else None
    asked = (privacy["sampling_rate"], privacy["noise_multiplier"], due["steps"], due["delta"])
    need(math.isclose(figures["pld"], due["epsilon"], rel_tol=1e-6), "PLD")
    # Gopi et al. (2021) are asked for an error of 0.01 at most.
    need(abs(figures["prv"] - due["epsilon"]) <= 0.01 + 0.005 * max(1, due["epsilon"]), "PRV")
    need(math.isclose(figures["rdp"], by_rdp(*asked, beside), rel_tol=0.01), "RDP")
    need(figures["doubt"] == "", "accountants that do not agree")
    need(math.isclose(life["epsilon_shown"], due["epsilon"], rel_tol=1e-6), "life's epsilon")
    shown = (None, None) if cap is None else (cap["epsilon"], cap["delta"])
    need((life["cap_epsilon"], life["cap_delta"]) == shown, "cap")


def worded(promise: dict[str, Any]) -> None:
    """The figures in the two sentences; best guess by Kairouz et al. (2015), eq. 5."""
    epsilon, delta = promise["epsilon"], promise["delta"]
    said = re.search(r"to the power ε\s=\s([\d.,]+)\)", promise["meaning"])
    need(said is not None and float(said[1].replace(",", "")) >= epsilon - 1e-6, "meaning")
    best = 1 - (1 - delta) / (1 + math.exp(epsilon))
    bet = re.search(r"is right (?:at most ([\d.]+)%|up to practically (100)%)", promise["as_a_bet"])
    need(bet is not None and float(bet[1] or bet[2]) >= 100 * best - 1e-9, "bet")


def together(rows: list[dict[str, Any]], result: dict[str, Any]) -> None:
    """One person at the k sites that spent most."""
    privacy, sites = result["privacy"], sorted(result["sites"], key=lambda s: -s["epsilon"])
    numbers = {*range(1, min(5, len(sites)) + 1), len(sites)}
    need([row["sites"] for row in rows] == sorted(numbers), "together: other numbers of sites")
    for row in rows:
        some = sites[: row["sites"]]
        steps, times = sum(s["steps"] for s in some), sum(s["counts"] for s in some)
        beside = privacy["metrics_noise_multiplier"] if times else None
        rate, noise, delta = (privacy[n] for n in ("sampling_rate", "noise_multiplier", "delta"))
        found = by_pld(rate, noise, steps, delta, beside, times)
        need(row["delta"] == delta, "together: delta")
        need(math.isclose(row["epsilon"], found, rel_tol=0.004, abs_tol=0.004), "together")


@lru_cache(maxsize=64)
def by_pld(
    rate: float,
    noise: float,
    steps: int,
    delta: float,
    beside: float | None = None,
    times: int = 1,
) -> float:
    grid = 1e-3  # at most 0.002 above the limit for the few thousand steps of any job here
    one = privacy_loss_distribution.from_gaussian_mechanism(
        noise, sampling_prob=rate, value_discretization_interval=grid
    )
    whole = [one.self_compose(steps)] if steps else []
    if beside is not None:
        whole.append(
            privacy_loss_distribution.from_gaussian_mechanism(
                beside, value_discretization_interval=grid
            ).self_compose(times)
        )
    if not whole:
        return 0.0
    return float(reduce(lambda a, b: a.compose(b), whole).get_epsilon_for_delta(delta))


@lru_cache(maxsize=64)
def by_rdp(
    rate: float, noise: float, steps: int, delta: float, beside: float | None = None
) -> float:
    event = dpa.PoissonSampledDpEvent(rate, dpa.GaussianDpEvent(noise))
    accountant = RdpAccountant().compose(event, steps)
    if beside is not None:
        accountant.compose(dpa.GaussianDpEvent(beside))
    return float(accountant.get_epsilon(delta))


def climbed(index: int, size: int, leaf: bytes, path: list[bytes]) -> bytes:
    """The root that a path leads to (RFC 6962, section 2.1.1, read backwards)."""
    if size == 1:
        need(not path, "path too long")
        return leaf
    half, sibling = split(size), path[-1]
    if index < half:
        return node(climbed(index, half, leaf, path[:-1]), sibling)
    return node(sibling, climbed(index - half, size - half, leaf, path[:-1]))


def grown(
    old: int, new: int, path: list[bytes], is_whole: bool, root: bytes
) -> tuple[bytes, bytes]:
    """Both roots that a proof leads to (RFC 6962, section 2.1.2, SUBPROOF read backwards)."""
    if old == new:
        if is_whole:
            need(not path, "proof too long")
            return root, root
        need(len(path) == 1, "proof of another length")
        return path[0], path[0]
    half = split(new)
    if old <= half:
        before, after = grown(old, half, path[:-1], is_whole, root)
        return before, node(after, path[-1])
    before, after = grown(old - half, new - half, path[:-1], False, root)
    return node(path[-1], before), node(path[-1], after)


def split(size: int) -> int:
    return 1 << (size - 1).bit_length() - 1


def node(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\x01" + left + right).digest()


def signed_head(head: dict[str, Any], keys: set[str]) -> None:
    need(head["public_key"] in keys, "head by a stranger")
    said = b"veiltune ledger head v1\n" + head["size"].to_bytes(8, "big")
    said += bytes.fromhex(head["root"])
    public(head["public_key"]).verify(bytes.fromhex(head["signature"]), said, SHA)


def entries(head: dict[str, Any]) -> tuple[int, str]:
    return head["size"], head["root"]


def site_keys(site: str, pem: bytes, root: list[x509.Certificate], moment: dt.datetime) -> set[str]:
    """The keys that certificates of the site, not ended by then, vouch for."""
    found, keys = x509.load_pem_x509_certificates(pem), set[str]()
    text = b"".join(c.public_bytes(serialization.Encoding.PEM) for c in found)
    need(text == pem, "certificates beside others")
    for leaf, above in zip(found[::2], found[1::2], strict=True):
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
        need(uris == [f"veiltune://site/{site}"], "another's certificate")
        at = max(moment, leaf.not_valid_before_utc)
        need_issued(leaf, above, root, leaf.not_valid_before_utc, ExtendedKeyUsageOID.CLIENT_AUTH)
        if leaf.not_valid_after_utc >= at <= above.not_valid_after_utc:
            keys.add(
                leaf.public_key()
                .public_bytes(
                    serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
                )
                .hex()
            )
    return keys


def server_key(pem: bytes, root: list[x509.Certificate], moment: dt.datetime) -> Any:  # noqa: ANN401
    leaf, above = x509.load_pem_x509_certificates(pem)
    need_issued(leaf, above, root, moment, ExtendedKeyUsageOID.SERVER_AUTH)
    return leaf.public_key()


def is_issued(one: x509.Certificate, by: x509.Certificate) -> bool:
    try:
        one.verify_directly_issued_by(by)
    except (ValueError, InvalidSignature):
        return False
    return True


def need_issued(
    leaf: x509.Certificate,
    above: x509.Certificate,
    root: list[x509.Certificate],
    moment: dt.datetime,
    purpose: x509.ObjectIdentifier,
) -> None:
    leaf.verify_directly_issued_by(above)
    own = next(one for one in root if is_issued(above, one))
    for one in (leaf, above, own):
        need(one.not_valid_before_utc <= moment <= one.not_valid_after_utc, "out of its time")
        basic = one.extensions.get_extension_for_class(x509.BasicConstraints).value
        need(basic.ca == (one is not leaf), "authority")
    need(
        purpose in leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value,
        "for another purpose",
    )


@lru_cache(maxsize=64)
def public(der: str) -> Any:  # noqa: ANN401
    return serialization.load_der_public_key(bytes.fromhex(der))


def canonical(value: Any) -> bytes:  # noqa: ANN401
    """RFC 8785 for documents without fractions."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def when(stamp: str) -> dt.datetime:
    return dt.datetime.strptime(stamp, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=dt.UTC)
