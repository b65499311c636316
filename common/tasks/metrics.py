"""What an evaluation on public records yields."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ClassScore:
    """One label's, or one kind of entity's, precision, recall, F1 in [0, 1] and how many are."""

    label: str
    precision: float
    recall: float
    f1: float
    support: int


@dataclass(frozen=True, slots=True)
class EntityScore:
    """How well entities were found, whole and of the right kind, over all kinds together.

    Attributes:
        precision: by seqeval's default, which takes an entity to begin wherever a tag can be read
            so.
        recall: likewise.
        f1: likewise.
        strict_f1: in seqeval's strict mode for IOB2, where an entity begins with a B- tag.
        words: words that were judged.
        words_cut: words of those beyond the longest text, which count as found to be ``O``.
    """

    precision: float
    recall: float
    f1: float
    strict_f1: float
    words: int
    words_cut: int


@dataclass(frozen=True, slots=True)
class Metrics:
    """Macro-F1 in [0, 1], the scores of every label, and what the task is judged by.

    Attributes:
        macro_f1: mean over ``classes``.
        classes: labels, or kinds of entities.
        accuracy: in [0, 1]; ``None`` for entities, which most words are none of.
        entities: where those are looked for.
    """

    macro_f1: float
    classes: tuple[ClassScore, ...]
    accuracy: float | None = None
    entities: EntityScore | None = None

    @property
    def entity_f1(self) -> float | None:
        """F1 of all entities together."""
        return None if self.entities is None else self.entities.f1
