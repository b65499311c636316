"""``fl-client data check``: a site's data, counted before a job asks for it.

Not covered: what the counts mean (common/data/check.py); nothing here leaves the site.
"""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from client.config import SiteHome
from common.data import catalogue
from common.data.check import DataReport, check
from common.data.overlap import Overlap, overlap
from common.data.readers import read_records
from common.data.records import require_labels
from common.errors import InvalidInput
from common.job import Job, load_job
from common.model import load_tokenizer, require_base


def names_of(home: SiteHome, name: str, job: Job | None) -> tuple[str, ...]:
    """The data sets to check: the one that is named, the job's, or all.

    Raises:
        InvalidInput: ``site.toml`` maps none, or not that one.
    """
    if wanted := name or (job.data.name if job else ""):
        home.data_set(wanted)
        return (wanted,)
    if not home.config.data:
        raise InvalidInput("site.toml must map a data set ([data.NAME]), got none")
    return tuple(home.config.data)


def read_job(path: Path | None) -> Job | None:
    """The job's own file, unsigned as the operator hands it around; ``None`` for none."""
    return None if path is None else load_job(path)


def inspect(home: SiteHome, name: str, job: Job | None) -> DataReport:
    """Count a data set, in the job's labels and tokens or in what occurs and in words.

    Raises:
        InvalidInput: the file cannot be read as it is mapped; names file and line alone.
        JobRefused: the job's base is another than the one here.
    """
    data_set = home.data_set(name)
    if job is not None and job.job.task not in data_set.tasks:
        needed = "words and tags" if job.job.task == "token-cls" else "text and label"
        raise InvalidInput(
            f"data.{name} must map {needed} for task {job.job.task!r}, got other columns"
        )
    records = read_records(home.path(data_set.path), data_set.columns)
    if job is None:
        return check(records, None, _words, 0, unit="words")
    return check(records, job.data.labels, _counter(home, job), job.model.max_length)


def as_json(
    home: SiteHome, name: str, job: Job | None, hold_out: str = "", split: str = "test"
) -> dict[str, Any]:
    """What is counted, with the name and file that it is of. Sensitive, as that is."""
    place = {"data": name, "path": str(home.path(home.data_set(name).path))}
    counts = place | asdict(inspect(home, name, job))
    if hold_out:
        counts["hold_out"] = asdict(beside(home, name, job, hold_out, split))
    return counts


def beside(home: SiteHome, name: str, job: Job | None, hold_out: str, split: str) -> Overlap:
    """Compare a data set with a public one: by name, or a file in the job's columns. Sensitive.

    Raises:
        InvalidInput: either cannot be read.
    """
    data_set = home.data_set(name)
    held = catalogue.load(hold_out, split, None if job is None else job.hold_out_columns)
    return overlap(list(read_records(home.path(data_set.path), data_set.columns)), held)


def require_public_labels(home: SiteHome, name: str, job: Job) -> None:
    """Check that every label is in the job's set.

    Raises:
        InvalidInput: names the first line that is not.
    """
    data_set = home.data_set(name)
    path = home.path(data_set.path)
    require_labels(read_records(path, data_set.columns), job.data.labels, path.name)


def _words(text: str) -> int:
    return len(text.split())


def _counter(home: SiteHome, job: Job) -> Callable[[str], int]:
    tokenizer = load_tokenizer(require_base(job, home.models))
    return lambda text: len(tokenizer(text, verbose=False)["input_ids"])
