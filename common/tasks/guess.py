"""What a model says of one text."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Guess:
    """A label with its probability, or an entity with its kind and its words. Sensitive.

    ``probability`` of an entity is that of its least certain tag.
    """

    label: str
    probability: float
    text: str = ""
