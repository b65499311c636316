"""What an evaluation on public records yields."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ClassScore:
    """One label's precision, recall, F1 in [0, 1] and its number of records."""

    label: str
    precision: float
    recall: float
    f1: float
    support: int


@dataclass(frozen=True, slots=True)
class Metrics:
    """Accuracy and macro-F1 in [0, 1], and the scores of every label."""

    accuracy: float
    macro_f1: float
    classes: tuple[ClassScore, ...]
