"""Tasks: one file each, from a record to a per-example loss and public metrics.

A task is what ``Task`` gathers; a new one is a module with these and a line in ``TASKS``.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from common.data.records import Record
from common.errors import InvalidInput
from common.job import Job
from common.tasks import logits, seq_cls, token_cls
from common.tasks.batches import Batch, Example
from common.tasks.guess import Guess
from common.tasks.metrics import Metrics


@dataclass(frozen=True, slots=True)
class Task:
    """What training and evaluation need to know of a task.

    Attributes:
        peft_type: the name peft has for it.
        load_base: (folder, job) -> the base with the task's head, and the names of the parameters
            that it has no weights for.
        encode: (tokenizer, records, job) -> one example a record.
        per_example_loss: (model, batch) -> (B,) losses that depend on their own example alone.
        predict: (model, batch) -> (B,) class indices, or (B, T).
        probabilities: (model, batch) -> (B, L) of every label, or (B, T, L).
        measure: (records, examples, predicted rows, job) -> metrics.
        public_example: (ids, seed, padded length, job) -> an example of public tokens.
        question: (text, job) -> a record whose label or tags are asked for.
        answer: (record, example, its probabilities, job) -> what the model says of it.
    """

    peft_type: str
    load_base: Callable[[Path, Job], tuple[nn.Module, frozenset[str]]]
    encode: Callable[[Any, Sequence[Record], Job], list[Example]]
    per_example_loss: Callable[[nn.Module, Batch], Tensor]
    predict: Callable[[nn.Module, Batch], Tensor]
    probabilities: Callable[[nn.Module, Batch], Tensor]
    measure: Callable[[Sequence[Record], Sequence[Example], Sequence[Any], Job], Metrics]
    public_example: Callable[[tuple[int, ...], int, int, Job], Example]
    question: Callable[[str, Job], Record]
    answer: Callable[[Record, Example, Tensor, Job], list[Guess]]


TASKS = {
    "seq-cls": Task(
        peft_type="SEQ_CLS",
        load_base=seq_cls.load_base,
        encode=seq_cls.encode,
        per_example_loss=seq_cls.per_example_loss,
        predict=logits.predict,
        probabilities=logits.probabilities,
        measure=seq_cls.measure,
        public_example=seq_cls.public_example,
        question=seq_cls.question,
        answer=seq_cls.answer,
    ),
    "token-cls": Task(
        peft_type="TOKEN_CLS",
        load_base=token_cls.load_base,
        encode=token_cls.encode,
        per_example_loss=token_cls.per_example_loss,
        predict=logits.predict,
        probabilities=logits.probabilities,
        measure=token_cls.measure,
        public_example=token_cls.public_example,
        question=token_cls.question,
        answer=token_cls.answer,
    ),
}


def task_of(job: Job) -> Task:
    """The task that a job names.

    Raises:
        InvalidInput: no such task.
    """
    if job.job.task not in TASKS:
        raise InvalidInput(f"job.task must be one of {', '.join(TASKS)}, got {job.job.task!r}")
    return TASKS[job.job.task]
