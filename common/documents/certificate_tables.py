"""The certificate's tables: what was spent, over which life, by which accounts, by which keys."""

from common.audit.certificate import Certificate
from common.audit.certificate_parts import SiteSpent
from common.config import RECORD
from common.documents.sheet import Alarm, Code, Prose, Section, Table, section
from common.figures import NOTHING, bound, plain, power
from common.words import counted


def figure(epsilon: float | None) -> str:
    """An epsilon of the certificate, rounded up; null is for no bound."""
    return "no bound" if epsilon is None else bound(epsilon)


def sites(certificate: Certificate) -> Section:
    """Steps and epsilon of each site."""
    unit = certificate.promise.unit
    person = certificate.sites[0].person_records
    heads = (
        "Site",
        "Declared population",
        "Steps charged",
        "of them signed",
        "ε",
        f"ε, {person} records",
        "δ",
    )
    rows = tuple(
        (
            site.name,
            f"{site.population:,}",
            f"{site.steps:,}",
            f"{site.steps_signed:,}",
            figure(site.epsilon),
            figure(site.person_epsilon),
            power(site.delta),
        )
        for site in certificate.sites
    )
    note = (
        "Steps that were charged, whether or not an update came of them; signed: by rows of the "
        "site's own ledger. The rest are rounds that it was asked for and did not answer, or that "
        f"were not closed, counted as charged. ε is about one {unit}; ε, {person} records is about "
        f"somebody with {person} records at that site"
        + (", who is more than one unit." if unit == RECORD else ", who is one unit here.")
    )
    numeric = frozenset(range(1, len(heads)))
    table = Table(heads, rows, numeric, (34, 26, 18, 18, 18, 26, 20))
    missing = [site.name for site in certificate.sites if site.last_word_shown is False]
    away = Alarm("Last word missing", _away(missing)) if missing else None
    return section("What each site spent", table, Prose(note), away, on_new_page=True)


def _away(missing: list[str]) -> str:
    return (
        f"This evidence has no last word on the job of {', '.join(missing)}, who was away when the "
        "job ended, or whose word was left out. Every round of the plan after the last charge "
        "that is shown counts as charged, since such a round could have been left out too."
    )


def several(certificate: Certificate) -> Section:
    """What one person costs at several sites."""
    unit = certificate.promise.unit
    rows = tuple(
        (counted(row.sites, "site"), figure(row.epsilon), power(row.delta))
        for row in certificate.known_to_several_sites
    )
    words = (
        "A person spends at every site that has records of them. One "
        f"{unit} at each of the sites that spent most:"
    )
    table = Table(("Known to", "ε together", "δ"), rows, frozenset({1, 2}), (80, 45, 45))
    return section("Somebody known to several sites", Prose(words), table)


def lifetimes(certificate: Certificate) -> Section:
    """The job beside each site's cap."""
    heads = (
        "Site",
        "This job",
        "Cap of its lifetime",
        "by the cap's count",
        "Ledger entries",
        "of them shown",
    )
    rows = tuple(_lifetime(site) for site in certificate.sites)
    words = (
        "A site's records may serve several jobs, and epsilon adds up over all of them. This is "
        "what the evidence shows of it: the job's own charges, the cap in the first entry of the "
        "site's ledger, and how many entries the ledger has in all. What the entries that are not "
        "shown say is in the ledger's export, which the site can have checked (fl-audit ledger)."
    )
    table = Table(heads, rows, frozenset({1, 3, 4, 5}), (26, 20, 58, 24, 22, 20))
    return section("Over the life of the data", Prose(words), table)


def _lifetime(site: SiteSpent) -> tuple[str, ...]:
    life = site.lifetime
    cap = "none that this evidence tells"
    if life.cap_epsilon is not None:
        cap = f"ε {plain(life.cap_epsilon)} at δ {power(life.cap_delta)}, {life.cap_accountant}"
    return (
        site.name,
        f"ε {figure(life.epsilon_shown)}",
        cap,
        NOTHING if life.cap_epsilon is None else figure(life.cap_figure),
        NOTHING if life.ledger_entries is None else f"{life.ledger_entries:,}",
        f"{life.entries_shown:,}",
    )


def accountants(certificate: Certificate) -> Section:
    """Three figures for each epsilon."""
    software = tuple((a.name.upper(), a.software, a.role) for a in certificate.accountants)
    rows = tuple(
        (
            site.name,
            *(_exact(value) for value in (site.figures.pld, site.figures.prv, site.figures.rdp)),
            site.figures.doubt or "agree",
        )
        for site in certificate.sites
    )
    heads = ("Site", "ε by PLD", "ε by PRV", "ε by RDP", "Verdict")
    return section(
        "Three accountants",
        Table(("Accountant", "Software", "Role"), software, frozenset(), (24, 46, 100)),
        Table(heads, rows, frozenset({1, 2, 3}), (40, 28, 28, 28, 46)),
    )


def _exact(value: float | None) -> str:
    return "none" if value is None else f"{value:.4f}"


def signatures(certificate: Certificate) -> Section:
    """Which key signed what."""
    rows = tuple(
        (row.what, f"{row.by}, {row.algorithm}", row.where, Code(row.key))
        for row in certificate.signatures
    )
    words = (
        "This document is listed by its sha256 in the bundle's manifest.json, which the server's "
        f"key signs. Its id, {certificate.id}, follows from its content: certificate.json beside "
        "it holds the same, and fl-audit verify checks the whole bundle against the federation's "
        "root."
    )
    heads = ("Signed", "by", "in the bundle", "key or certificate (sha256)")
    return section("Signatures", Prose(words), Table(heads, rows, frozenset(), (42, 38, 36, 54)))
