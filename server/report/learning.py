"""What was learned and what it cost, round by round: two charts and a table.

Not covered: what an epsilon means (common/statement.py).
"""

from common import statement
from common.documents.markup import Markup, element, table
from common.figures import NOTHING, bound, duration, plain, share, size
from common.job import Job
from common.result import Result
from common.words import public_name
from server.report.plots import Series, line_chart

Points = tuple[tuple[int, float | None], ...]


def learning(result: Result, job: Job) -> Markup:
    """Charts of score and epsilon by round, and every round as a table."""
    source = public_name(job.evaluation.data)
    measured = f" on the public hold-out {source} ({job.evaluation.split}), {_extent(result, job)}."
    if result.start is not None:
        measured += " Round 0 is the untrained start."
    measured += f" {statement.disjointness(job)}"
    if result.kept_round is not None:
        measured += f" The adapter is that of round {result.kept_round}, the best."
    subject = result.measure if is_of_words(result) else "Accuracy and macro-F1"
    figures = [_figure(_score_chart(result), subject[0].upper() + subject[1:], measured)]
    if result.epsilon is not None:
        spent = " spent by then, of the site that has spent most." + (
            "" if result.private else " Nominal: this run promises nothing."
        )
        figures.append(_figure(_epsilon_chart(result, job), "Epsilon", spent))
    return element(
        "section",
        element("h2", "What was learned, and what it cost" if result.private else "Learning"),
        element("div", *figures, class_="plots"),
        _rounds(result),
    )


def is_of_words(result: Result) -> bool:
    """Whether entities were looked for."""
    return result.final.entities is not None


def _extent(result: Result, job: Job) -> str:
    """How much the hold-out holds."""
    support = sum(row.support for row in result.final.classes)
    found = result.final.entities
    if found is not None:
        return f"{support:,} entities in {found.words:,} words, {statement.counting(found)}"
    return f"{support or job.evaluation.records:,} records"


def _figure(chart: Markup, subject: str, words: str) -> Markup:
    return element("figure", chart, element("figcaption", element("b", subject), words))


def _score_chart(result: Result) -> Markup:
    score: Points = tuple((row.round, row.score) for row in result.rounds)
    macro_f1: Points = tuple((row.round, row.macro_f1) for row in result.rounds)
    if result.start is not None:
        score = ((0, result.start.score), *score)
        macro_f1 = ((0, result.start.macro_f1), *macro_f1)
    name, last = result.measure, result.rounds[-1]
    lines = [_series(name, "first", score)]
    summary = f"{name[0].upper()}{name[1:]} by round, ending at {share(last.score)}"
    if not is_of_words(result) or len(result.final.classes) > 1:
        lines.append(_series("macro-F1", "second", macro_f1))
        summary += f"; macro-F1 at {share(last.macro_f1)}"
    return line_chart(lines, summary=summary, y_max=1.0)


def _series(name: str, style: str, points: Points) -> Series:
    words = tuple(f"round {x}: {name} {share(y)}" for x, y in points)
    return Series(name, style, points, words)


def _epsilon_chart(result: Result, job: Job) -> Markup:
    # Nothing is spent before the first round.
    points = ((0, 0.0), *((row.round, row.epsilon) for row in result.rounds))
    words = tuple(f"round {x}: epsilon {bound(y)}" for x, y in points)
    goal = job.privacy.epsilon
    highest = max([y for _, y in points if y is not None] + [goal or 0.0, 1e-3])
    return line_chart(
        [Series("epsilon", "cost", points, words)],
        summary=f"Epsilon by round, ending at {bound(result.epsilon)}"
        + (f" of {plain(goal)} agreed" if goal else ""),
        y_max=highest * 1.1,
        target=(goal, f"agreed in the job: {plain(goal)}") if goal else None,
    )


def _rounds(result: Result) -> Markup:
    heads = (
        "round",
        result.measure,
        "macro-F1",
        "epsilon",
        "sent by sites",
        "sent to sites",
        "time",
    )
    rows = [
        (
            f"{row.round} (kept)" if row.round == result.kept_round else str(row.round),
            share(row.score),
            share(row.macro_f1),
            NOTHING if row.epsilon is None else bound(row.epsilon),
            size(row.bytes_up),
            NOTHING if row.bytes_down is None else size(row.bytes_down),
            duration(row.seconds),
        )
        for row in result.rounds
    ]
    body = [element("tr", *(element("td", cell, class_="num") for cell in row)) for row in rows]
    rows_table = table([element("th", head, class_="num") for head in heads], body)
    return element("details", element("summary", "Every round as a table"), rows_table)
