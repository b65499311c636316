"""Entities in IOB2 tags, and how well they were found, by seqeval's rules.

seqeval (Nakayama 2018, https://github.com/chakki-works/seqeval) is what published figures of named
entity recognition are computed with; its default reads tags as the CoNLL script does.
"""

from collections.abc import Sequence

from seqeval.metrics import classification_report, f1_score
from seqeval.metrics.sequence_labeling import get_entities
from seqeval.scheme import IOB2

from common.job import entity_types
from common.tasks.metrics import ClassScore, EntityScore, Metrics

Tags = Sequence[str]


def entities(tags: Tags) -> list[tuple[str, int, int]]:
    """Kind, first and last word of every entity, by seqeval's default.

    >>> entities(["O", "B-Drug", "I-Drug", "I-Sign"])
    [('Drug', 1, 2), ('Sign', 3, 3)]
    """
    return [(str(kind), first, last) for kind, first, last in get_entities(list(tags))]


def score(
    truth: Sequence[Tags], found: Sequence[Tags], labels: Sequence[str], *, words_cut: int = 0
) -> Metrics:
    """Micro-averaged scores in the default and the strict mode, and those of every kind.

    Args:
        truth: the tags of every word, a sequence for each text.
        found: as many.
        labels: the public set of tags; a kind that occurs nowhere scores 0.
        words_cut: words that no model saw, for the record.
    """
    right, guessed = [list(tags) for tags in truth], [list(tags) for tags in found]
    kinds = entity_types(labels)
    # Without any entity in sight seqeval has nothing to report on.
    is_empty = not any(entities(tags) for tags in (*right, *guessed))
    report = (
        {} if is_empty else classification_report(right, guessed, output_dict=True, zero_division=0)
    )
    classes = tuple(_class(kind, report.get(kind, {})) for kind in kinds)
    overall = report.get("micro avg", {})
    strict = (
        0.0 if is_empty else f1_score(right, guessed, mode="strict", scheme=IOB2, zero_division=0)
    )
    whole = EntityScore(
        precision=float(overall.get("precision", 0.0)),
        recall=float(overall.get("recall", 0.0)),
        f1=float(overall.get("f1-score", 0.0)),
        strict_f1=float(strict),
        words=sum(map(len, right)),
        words_cut=words_cut,
    )
    return Metrics(sum(row.f1 for row in classes) / len(classes), classes, entities=whole)


def _class(kind: str, row: dict[str, float]) -> ClassScore:
    names = ("precision", "recall", "f1-score")
    precision, recall, f1 = (float(row.get(name, 0.0)) for name in names)
    return ClassScore(kind, precision, recall, f1, int(row.get("support", 0)))
