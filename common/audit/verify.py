"""Every claim of a bundle of evidence, from the bundle and a root certificate alone.

Nothing is read that a signature does not stand for: a bundle whose bytes are not those that were
sealed fails, and what it says is not looked at. Without a root everything is checked against the
authorities that the bundle itself names, and whose they are is not checkable.

Not covered: that the sites ran what they recorded, with this noise (their self-checks, and audits
by attack); that the result's accuracy is right; entries of a ledger that no charge shows.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from common import pki
from common.audit import charges, documents, roster, rounds, spent
from common.audit.adapter_file import check_adapter
from common.audit.claims import Claim, checked, judged, unchecked
from common.audit.evidence import (
    Bundle,
    Evidence,
    Manifest,
    open_bundle,
    read_evidence,
    require_files,
    require_sealed,
)
from common.audit.printed import check_printed
from common.errors import InvalidInput, Refusal
from common.job import verify_job
from common.words import counted

NOT_CHECKED = (
    "that the sites ran what they recorded, with this noise and sampler: their self-checks, and "
    "audits by attack",
    "that this is the job which was agreed: compare its sha256, and the operator's key",
    "that every site's ledger continues elsewhere: compare a head with the site's own",
    "accuracy and F1: the hold-out is not in the bundle; that it shares no unit with a site: the "
    "operator's word, where there is one",
    "that audits on a certificate were run, and found what stands there: the server's word",
    "the model card and the list of what is installed: they are as the server signed them",
)
_INVENTED = (
    "that the server's intermediate key vouched for the true sites alone: each site can compare "
    "this with its own ledger"
)
_UNSOUND = "the result is not of the job's mechanism"
_DOCUMENTS = ("documents", "printed")
_AFTER_BYTES = (
    "content", "issuer", "roster", "job", "receipts", "rounds", "links", "adapter",
    "replies", "result", "epsilon by round", *_DOCUMENTS,
)  # fmt: skip


@dataclass(frozen=True)
class Report:
    """What was claimed and found; no manifest where it is no bundle."""

    claims: tuple[Claim, ...]
    is_rooted: bool
    manifest: Manifest | None = None
    evidence: Evidence | None = field(default=None, repr=False)

    @property
    def failed(self) -> tuple[Claim, ...]:
        """The claims that do not hold."""
        return tuple(claim for claim in self.claims if claim.status == "fail")

    @property
    def not_checked(self) -> tuple[str, ...]:
        """What no claim here is about, in sentences."""
        rostered = any(c.name == "roster" and c.status == "pass" for c in self.claims)
        return NOT_CHECKED if rostered else (NOT_CHECKED[0], _INVENTED, *NOT_CHECKED[1:])


def verify(data: bytes, roots: bytes | None, adapter: bytes | None = None) -> Report:
    """Check a bundle's every claim.

    Args:
        data: the whole file.
        roots: the root that is trusted (PEM), or both while one follows the other; None where the
            auditor has none, and then the issuer is not checkable.
        adapter: the adapter's file (safetensors), to hold against the kept round; None for none.

    Raises:
        InvalidInput: ``roots`` is no certificate. Whatever is wrong with ``data`` is a claim.
    """
    if roots is not None:
        pki.load_certificates(roots)
    claims, bundle = _bytes(data)
    if bundle is None or any(claim.status == "fail" for claim in claims):
        why = "the bundle's bytes are not those that its server signed"
        claims += [unchecked(name, why) for name in _AFTER_BYTES]
        return Report(tuple(claims), roots is not None, bundle.manifest if bundle else None)
    try:
        evidence = read_evidence(bundle)
    except InvalidInput as error:
        claims.append(Claim("content", "", "fail", str(error)))
        claims += [unchecked(name, "the content cannot be read") for name in _AFTER_BYTES[1:]]
        return Report(tuple(claims), roots is not None, bundle.manifest)
    claims.append(Claim("content", "", "pass", f"job {evidence.job.job.job.name}, parsed whole"))
    claims += _content(bundle, evidence, roots, adapter)
    return Report(tuple(claims), roots is not None, bundle.manifest, evidence)


def _bytes(data: bytes) -> tuple[list[Claim], Bundle | None]:
    try:
        bundle = open_bundle(data)
    except InvalidInput as error:
        claims = [Claim("container", "", "fail", str(error))]
        return claims + [unchecked(name, "no bundle") for name in ("manifest", "files")], None
    count = counted(len(bundle.files), "file")

    def sealed() -> str:
        require_sealed(bundle)
        return f"signed by the key of certificate {pki.fingerprint(_chain(bundle))[:16]}"

    def whole() -> str:
        require_files(bundle)
        return f"{count} as the manifest names them, and no other"

    container = Claim("container", "", "pass", f"{count} in {len(data)} bytes, in their one form")
    return [container, checked("manifest", sealed), checked("files", whole)], bundle


def _content(
    bundle: Bundle, evidence: Evidence, roots: bytes | None, adapter: bytes | None
) -> Iterator[Claim]:
    """Whatever the content claims; the root first, on which the rest stands."""
    trusted = _named_authorities(bundle, evidence) if roots is None else roots
    if roots is None:
        yield unchecked("issuer", "no root was given (--root): whose word this is, nobody checked")
    else:
        yield checked("issuer", lambda: _issuer(bundle, roots))
    yield _roster(evidence, roots)
    yield checked("job", lambda: _job(bundle, evidence))
    yield checked("receipts", lambda: rounds.check_signatures(evidence, trusted))
    yield checked("rounds", lambda: rounds.check_chain(evidence))
    yield checked("links", lambda: rounds.check_links(evidence))
    yield judged("adapter", lambda: check_adapter(adapter, evidence))
    yield checked("replies", lambda: rounds.check_replies(evidence))
    # Accountants are asked about the job's mechanism alone.
    result = checked("result", lambda: spent.check_statement(evidence))
    is_sound = result.status == "pass"
    of_site: tuple[tuple[str, Callable[[str], str]], ...] = (
        ("certificate", lambda site: charges.check_certificates(site, evidence, trusted)),
        ("charges", lambda site: charges.check_charges(site, evidence, trusted)),
        ("heads", lambda site: charges.check_heads(site, evidence, trusted)),
    )
    for site in evidence.job.job.sites:
        for name, check in of_site:
            yield _of_site(name, site, check)
        yield _epsilon(site, evidence) if is_sound else unchecked("epsilon", _UNSOUND, site)
        yield _ending(site, evidence, trusted)
    yield result
    if not is_sound:
        yield from (unchecked(name, _UNSOUND) for name in ("epsilon by round", *_DOCUMENTS))
        return
    yield checked("epsilon by round", lambda: spent.check_rounds(evidence))
    yield checked("documents", lambda: documents.check_documents(bundle.documents, evidence))
    yield judged("printed", lambda: check_printed(bundle.documents, evidence))


def _epsilon(site: str, evidence: Evidence) -> Claim:
    return _of_site("epsilon", site, lambda name: spent.check_epsilon(name, evidence))


def _of_site(name: str, site: str, check: Callable[[str], str]) -> Claim:
    return checked(name, lambda: check(site), site)


def _ending(site: str, evidence: Evidence, roots: bytes) -> Claim:
    if site in evidence.endings:
        return _of_site("ending", site, lambda name: charges.check_last_word(name, evidence, roots))
    # Away when the job ended, or kept back by the server: which of them a bundle cannot show.
    why = "the site's last word is not here: every round after its last charge counts as charged"
    return unchecked("ending", why, site)


def _roster(evidence: Evidence, roots: bytes | None) -> Claim:
    if not evidence.roster:
        why = "no roster of the root is here: sites that the server made up cannot be excluded"
        return unchecked("roster", why)
    if roots is None:
        return unchecked("roster", "no root was given (--root): whose roster it is, nobody checked")
    return checked("roster", lambda: roster.check_roster(evidence, roots))


def _issuer(bundle: Bundle, roots: bytes) -> str:
    chain, moment = _chain(bundle), charges.moment_of(bundle.manifest.made_at)
    host = next(iter(pki.hosts_of(chain)), "localhost")
    pki.check_server_chain(chain, roots, host, now=moment)
    return (
        f"server {host} of federation {pki.organisation(roots)}, certified under root "
        f"{pki.fingerprint(roots)[:16]} when this was made, {bundle.manifest.made_at}"
    )


def _job(bundle: Bundle, evidence: Evidence) -> str:
    signed, manifest = evidence.job, bundle.manifest
    if signed.job.sha256 != manifest.job_sha256:
        raise Refusal("job must be the one that the manifest names, got another")
    verify_job(signed, (manifest.operator,))
    return f"{signed.job.sha256[:16]}, signed by operator key {signed.signer[:16]}"


def _chain(bundle: Bundle) -> bytes:
    return bundle.seal.chain.encode("ascii")


def _named_authorities(bundle: Bundle, evidence: Evidence) -> bytes:
    """The last certificate of every chain in the bundle, to be consistent with."""
    chains = {bundle.seal.chain, *(signed.chain for signed in evidence.receipts)}
    pems = [chain.encode("ascii") for chain in chains] + list(evidence.certificates.values())
    return b"".join(sorted({pki.to_pem(pki.load_certificates(pem)[-1]) for pem in pems}))
