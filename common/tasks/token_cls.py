"""Token classification: a tag for every word, of which entities are read.

A word's first token carries its tag and is all of it that the loss sees. The loss of a record is
the mean over its own words: over the batch's, each record's gradient would depend on how many words
the others have, and removing one record would move them all.

Not covered: entities within entities; words that the base cannot see because a text is too long
count as ``O``, and are counted.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from common.data.records import OUTSIDE, Record
from common.data.tagging import split_words
from common.errors import InvalidInput
from common.job import Job
from common.tasks.batches import IGNORED, Batch, Example, padded_length
from common.tasks.entities import entities, score
from common.tasks.guess import Guess
from common.tasks.loading import load_with_head
from common.tasks.logits import logits
from common.tasks.metrics import Metrics

_Indices = Sequence[int] | NDArray[np.int64]


def load_base(folder: Path, job: Job) -> tuple[nn.Module, frozenset[str]]:
    """The base with a head of the job's tags, and the parameters it has no weights for."""
    from transformers import AutoModelForTokenClassification

    return load_with_head(AutoModelForTokenClassification, folder, job)


def encode(tokenizer: Any, records: Sequence[Record], job: Job) -> list[Example]:  # noqa: ANN401
    """Token ids cut at ``model.max_length``, and the tag of each word at its first token.

    Raises:
        InvalidInput: a record without words, a tag outside the job's public set, or a tokenizer
            that cannot say which word a token is of.
    """
    if not records:
        return []
    if not all(record.words for record in records):
        raise InvalidInput("records must have words and tags, got some without")
    index = {label: i for i, label in enumerate(job.data.labels)}
    unknown = sum(not index.keys() >= set(record.tags) for record in records)
    if unknown:
        raise InvalidInput(
            f"tags must be in the job's public set of {len(index)}, got {unknown} records with "
            "others"
        )
    require_word_places(tokenizer)
    limit = job.model.max_length
    found = tokenizer(
        # As in a text a space goes before: byte-level tokenizers know most words by it alone.
        [[f" {word}" if word else "" for word in record.words] for record in records],
        is_split_into_words=True,
        truncation=True,
        max_length=limit,
    )
    return [
        _example(found["input_ids"][row], found.word_ids(row), record, index, limit)
        for row, record in enumerate(records)
    ]


def require_word_places(tokenizer: Any) -> None:  # noqa: ANN401 -- transformers is untyped
    """Check that a tokenizer tells which word each token is of, and takes words as they come.

    Raises:
        InvalidInput: it does not.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise InvalidInput(
            "model.base must have a tokenizer.json for task 'token-cls', got a tokenizer that does "
            "not tell which word a token is of"
        )


def _example(
    ids: Sequence[int],
    places: Sequence[int | None],
    record: Record,
    index: dict[str, int],
    limit: int,
) -> Example:
    label, words, last = [], [], None
    for place in places:
        begins = place is not None and place != last
        if place is not None and begins:
            words.append(place)
            label.append(index[record.tags[place]])
        else:
            label.append(IGNORED)
        last = place
    return Example(tuple(ids), tuple(label), padded_length(len(ids), limit), tuple(words))


def per_example_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Each example's cross-entropy, the mean over its own words, (B,); 0 where it has none."""
    each = functional.cross_entropy(
        logits(model, batch).transpose(1, 2), batch.labels, reduction="none", ignore_index=IGNORED
    )
    own = (batch.labels != IGNORED).sum(dim=1).clamp(min=1)
    return each.sum(dim=1) / own


def measure(
    records: Sequence[Record],
    examples: Sequence[Example],
    predicted: Sequence[NDArray[np.int64]],
    job: Job,
) -> Metrics:
    """Precision, recall and F1 of the entities, over whole texts."""
    labels = job.data.labels
    truth = [record.tags for record in records]
    found = [
        word_tags(example, row, labels, len(record.words))
        for record, example, row in zip(records, examples, predicted, strict=True)
    ]
    words = sum(map(len, truth))
    seen = sum(len(example.words) for example in examples)
    return score(truth, found, labels, words_cut=words - seen)


def word_tags(
    example: Example, predicted: _Indices, labels: Sequence[str], count: int
) -> list[str]:
    """A tag for each of ``count`` words; ``O`` for those that have no token.

    Args:
        example: tells which token carries which word's tag.
        predicted: (T,) or more, the index of a label for every token.
        labels: the job's.
        count: words of the record.
    """
    tags = [OUTSIDE] * count
    for token, word in _carriers(example):
        tags[word] = labels[int(predicted[token])]
    return tags


def _carriers(example: Example) -> Iterator[tuple[int, int]]:
    """The tokens that count, each with its word."""
    label = example.label if isinstance(example.label, tuple) else ()
    tokens = [token for token, index in enumerate(label) if index != IGNORED]
    return zip(tokens, example.words, strict=True)


def public_example(ids: tuple[int, ...], seed: int, length: int, job: Job) -> Example:
    """An example of public tokens, every third of which carries no tag."""
    count = len(job.data.labels)
    label = tuple(IGNORED if i % 3 == 2 else (seed + i) % count for i in range(len(ids)))
    words = tuple(range(sum(index != IGNORED for index in label)))
    return Example(ids, label, length, words)


def question(text: str, job: Job) -> Record:
    """A text whose entities are asked for."""
    words = tuple(text[start:end] for start, end in split_words(text))
    return Record(text, "", words=words, tags=(OUTSIDE,) * len(words))


def answer(record: Record, example: Example, probabilities: Tensor, job: Job) -> list[Guess]:
    """The entities in the order of the text, from each token's probabilities, (T, L)."""
    best = probabilities.max(dim=-1)
    tags = word_tags(example, best.indices.tolist(), job.data.labels, len(record.words))
    sure = dict.fromkeys(range(len(record.words)), 0.0)
    sure |= {word: float(best.values[token]) for token, word in _carriers(example)}
    return [
        Guess(
            kind,
            min(sure[word] for word in range(first, last + 1)),
            " ".join(record.words[first : last + 1]),
        )
        for kind, first, last in entities(tags)
    ]
