"""The report's page: a run's outcome for people, as one HTML file.

It holds no script and fetches nothing; its content security policy forbids both, so that a name
from outside which slipped past the escaping would still do nothing. Not covered: a signature.
"""

from importlib.resources import files
from pathlib import Path

from common import statement
from common.documents.markup import Markup, breakable, element, join, page_head, table
from common.figures import bound, duration, power, share, size
from common.files import write_file
from common.job import Job, entity_types
from common.privacy import group
from common.result import ClassResult, Result
from common.statement import PERSON_RECORDS, SitePromise
from common.words import public_name
from server.report.learning import is_of_words, learning
from server.report.measured import measured
from server.report.plots import bar

# Beyond this a table of classes is read two columns abreast, with fewer bars.
MANY_CLASSES = 20

_GRIDS = {
    "link": "gRPC link, certificates on both sides",
    "inprocess": "simulated in one process",
    "ray": "simulated with Ray",
    "stacked": "simulated in one process, sites trained together",
    "superlink": "Flower SuperLink",
}


def write_report(result: Result, job: Job, path: Path) -> None:
    """Write the report of ``result`` to ``path``, whole or not at all.

    Raises:
        InvalidInput: the result is another job's.
        StorageFailed: the disk refused.
    """
    write_file(path, page(result, job).encode(), mode=0o644)


def page(result: Result, job: Job) -> str:
    """The whole document.

    Raises:
        InvalidInput: the result is another job's.
    """
    promises = statement.site_promises(result, job)
    css = files("common.documents").joinpath("style.css").read_text("utf-8")
    body = element(
        "main",
        _head(result, job),
        learning(result, job),
        _promise(result, promises),
        _sites(result, promises),
        _classes(result),
        measured(result),
        _terms(result),
        _footer(result),
    )
    document = element(
        "html", page_head(f"{result.name}: report", css), element("body", body), lang="en"
    )
    return f"<!doctype html>\n{document}\n"


def _head(result: Result, job: Job) -> Markup:
    facts = (
        _purpose(job),
        f"LoRA of rank {job.adapter.rank} on {public_name(job.model.base)}",
        _GRIDS[result.grid],
    )
    why = statement.warning(result)
    return element(
        "header",
        element("div", _mark(), "Veiltune, federated fine-tuning", class_="eyebrow"),
        element("h1", result.name),
        element("p", job.job.description, class_="lede") if job.job.description else None,
        element("p", " · ".join(facts), class_="facts"),
        _banner(why) if why else None,
        _headline(result),
    )


def _purpose(job: Job) -> str:
    if job.job.task == "token-cls":
        return f"Words tagged, to find {', '.join(entity_types(job.data.labels))}"
    return f"Text classification into {len(job.data.labels)} labels"


def _mark() -> Markup:
    circles = [element("circle", cx=x, cy=8, r=6.5) for x in (8, 12, 16)]
    return element("svg", *circles, viewBox="0 0 24 16", class_="mark", aria_hidden="true")


def _banner(why: str) -> Markup:
    return element(
        "div",
        element("strong", "Not private: this run gives no privacy guarantee"),
        element("p", why),
        class_="banner",
        role="alert",
    )


def _headline(result: Result) -> Markup:
    figures = [(result.measure, share(result.final.score), "lead")]
    found = result.final.entities
    if found is None:
        figures.append(("macro-F1", share(result.final.macro_f1), "lead"))
    else:
        figures.append(("precision", share(found.precision), "lead"))
        figures.append(("recall", share(found.recall), "lead"))
    if result.private:
        at = f"epsilon at delta {power(result.privacy.delta)}"
        figures.append((at, f"ε {bound(result.epsilon)}", "cost"))
    figures += [
        ("sites" if len(result.sites) > 1 else "site", str(len(result.sites)), ""),
        ("rounds" if result.last_round != 1 else "round", str(result.last_round), ""),
        ("sent by sites", size(result.bytes_up), ""),
        *([("sent to sites", size(down), "")] if (down := result.bytes_down) is not None else []),
        ("in all", duration(result.seconds), ""),
    ]
    rows = [
        element("div", element("dt", name), element("dd", value), class_=style or None)
        for name, value, style in figures
    ]
    return element("dl", *rows, class_="figures")


def _promise(result: Result, promises: tuple[SitePromise, ...]) -> Markup:
    heading = element("h2", "What is promised to the people in the records")
    epsilon, delta = result.epsilon, result.privacy.delta
    if not result.private or epsilon is None or delta is None:
        why = "Nothing. Treat the adapter as you would treat the records it was trained on."
        return element("section", heading, element("p", why, class_="prose"))
    beside = "" if result.metrics is None else " and, once, noised counts of held-out records"
    left = (
        "Records stayed at their sites. Each site trained with differential privacy and sent only "
        f"noised updates{beside}, so the promise holds against the server and the other sites as "
        "well.",
        statement.meaning(epsilon, delta, result.privacy.unit),
        statement.bet(epsilon, delta, result.privacy.unit),
    )
    right = [element("h3", "Someone with several records")]
    right.append(element("p", statement.person(promises, result.privacy.unit)))
    if together := statement.several_sites(result):
        right += [element("h3", "Someone known to several sites"), element("p", together)]
    columns = (
        element("div", *(element("p", words) for words in left)),
        element("div", *right),
    )
    return element("section", heading, element("div", *columns, class_="pair"))


def _sites(result: Result, promises: tuple[SitePromise, ...]) -> Markup:
    heads = [
        element("th", "Site"),
        element("th", "Public population", class_="num"),
        element("th", "Steps", class_="num"),
    ]
    if result.epsilon is not None:
        kind = "ε" if result.private else "nominal ε"
        heads += [
            element("th", f"{kind}, one {result.privacy.unit}", class_="num"),
            element("th", f"{kind}, person with {PERSON_RECORDS} records", class_="num"),
            element("th", "δ", class_="num"),
        ]
    rows = [_site_row(site, result.epsilon is not None) for site in promises]
    note = None
    if result.epsilon is not None:
        note = element(
            "p",
            "Epsilon is computed from the steps that a site was charged for, whether or not its "
            "update arrived in time"
            + (", and from its counts" if result.metrics else "")
            + ". Both epsilons hold at the same delta.",
            class_="soft small",
        )
    return element("section", element("h2", "Sites"), table(heads, rows), note)


def _site_row(site: SitePromise, with_epsilon: bool) -> Markup:
    steps = f"{site.steps:,}" if site.steps else "0 (took no part)"
    cells = [
        element("th", breakable(site.name), scope="row"),
        element("td", f"{site.population:,}", class_="num"),
        element("td", steps, class_="num"),
    ]
    if with_epsilon:
        weak = (site.person_epsilon or 0.0) > group.MEANINGFUL_EPSILON
        remark = element("small", "no meaningful guarantee") if weak else None
        cells += [
            element("td", bound(site.epsilon), class_="num"),
            element("td", bound(site.person_epsilon), remark, class_="num"),
            element("td", power(site.delta), class_="num"),
        ]
    return element("tr", *cells)


def _classes(result: Result) -> Markup | None:
    if not result.final.classes:
        return None
    rows = sorted(result.final.classes, key=lambda row: (row.support == 0, -row.f1, row.label))
    many = len(rows) > MANY_CLASSES
    half = (len(rows) + 1) // 2 if many else len(rows)
    tables = [_class_table(part, many) for part in (rows[:half], rows[half:]) if part]
    of_words = is_of_words(result)
    what = "entities" if of_words else "records"
    note = f"On the public hold-out, highest F1 first. Support counts the hold-out's {what}."
    return element(
        "section",
        element("h2", _counted_classes(len(rows), of_words=of_words)),
        element("div", *tables, class_="classes many" if many else "classes"),
        element("p", note, class_="soft small"),
    )


def _counted_classes(count: int, *, of_words: bool) -> str:
    if not of_words:
        return f"The {count} classes"
    return "The kind of entity" if count == 1 else f"The {count} kinds of entities"


def _class_table(rows: list[ClassResult], many: bool) -> Markup:
    heads = [element("th", "Class"), element("th", "F1")]
    numeric = "num" if many else None
    heads += [element("th", name, class_=numeric) for name in ("Precision", "Recall")]
    heads.append(element("th", "Support", class_="num"))
    return table(heads, [_class_row(row, many) for row in rows])


def _class_row(row: ClassResult, many: bool) -> Markup:
    cells = [element("th", breakable(row.label), scope="row"), _measure(row.f1, row, "", True)]
    cells += [_measure(value, row, "thin", not many) for value in (row.precision, row.recall)]
    return element("tr", *cells, element("td", f"{row.support:,}", class_="num"))


def _measure(value: float, row: ClassResult, style: str, with_bar: bool) -> Markup:
    """A figure with its bar; a class without records in the hold-out has neither."""
    drawn = bar(value, style) if with_bar and row.support else None
    words = share(value if row.support else None)
    return element("td", drawn, words, class_="figure" if with_bar else "num")


def _terms(result: Result) -> Markup:
    terms = [
        part
        for term, words in statement.mechanism(result)
        for part in (element("dt", term), element("dd", words))
    ]
    left = element(
        "section", element("h2", "The mechanism"), element("dl", *terms, class_="terms small")
    )
    items = [element("li", words) for words in statement.not_covered(result)]
    right = element(
        "section", element("h2", "What is not covered"), element("ul", *items, class_="small")
    )
    return element("section", element("div", left, right, class_="pair"))


def _footer(result: Result) -> Markup:
    terms = [
        part
        for term, value in (("Job", result.job_sha256), ("Adapter file", result.adapter_sha256))
        for part in (element("dt", f"{term} (sha256)"), element("dd", element("code", value)))
    ]
    check = join(
        "Recompute each epsilon and the adapter's hash from this folder: ",
        element("code", "fl-audit result ."),
    )
    return element(
        "footer",
        element("dl", *terms, class_="terms small"),
        element("p", check, class_="soft small"),
    )
