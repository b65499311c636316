"""A site's counts on the wire: one buffer of the job's length, and nothing that tells of more."""

from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, RecordDict

from common.config import parse
from common.errors import UpdateRejected
from common.flower import content_to_bytes
from common.histograms import bins
from common.job import MOST_JOB_SITES, Job
from common.measured import MetricsResult, measured
from common.metric_messages import Counts, counts_reply, read_counts
from common.privacy.ledger import Head

HEAD = Head(7, "ab" * 32, "cd" * 64, "ef" * 91)
MakeJob = Any


@pytest.fixture
def counting_job(make_job: MakeJob) -> Job:
    asked = {"release": ["accuracy", "classes"], "hold_out": 0.25, "share": 0.1}
    made: Job = make_job(metrics=asked)
    return made


def reply(counts: list[int]) -> RecordDict:
    return counts_reply(Counts(np.array(counts, dtype=np.int64), "12" * 32, HEAD))


def test_counts_come_back_as_they_went(counting_job: Job) -> None:
    counts = [5, -3, 0, 2**40, -(2**40), 1, 1, 1]
    found = read_counts(reply(counts), counting_job)
    assert found.counts.tolist() == counts
    assert found.counts.dtype == np.int64
    assert (found.input_sha256, found.head) == ("12" * 32, HEAD)


def test_the_bytes_are_as_many_whatever_is_counted() -> None:
    sizes = {len(content_to_bytes(reply(counts))) for counts in ([0] * 8, [10**9] * 8, [-1] * 8)}
    assert len(sizes) == 1


def body(**fields: Any) -> RecordDict:  # noqa: ANN401
    content = reply([0] * 8)
    whole = dict(content.config_records["counts"]) | fields
    kept = {key: value for key, value in whole.items() if value is not None}
    return RecordDict({"counts": ConfigRecord(kept), "head": content.config_records["head"]})


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (RecordDict(), "must hold counts"),
        (body(n=52), "must hold counts"),  # how many there were
        (body(counts=None), "must hold counts"),
        (RecordDict({**body(), "loss": ConfigRecord({"mean": 0.5})}), "must hold counts"),
        (body(counts=b"\0" * 56), "8 numbers"),
        (body(counts=b"\0" * 72), "8 numbers"),
        (body(counts=b""), "8 numbers"),
        (body(counts="0" * 64), "8 numbers"),
        (body(counts=(2**52).to_bytes(8, "little") * 8), "within 2\\^52"),
        (body(counts=b"\0" * 56 + b"\0" * 7 + b"\x80"), "within 2\\^52"),
        (RecordDict({"counts": body()["counts"], "head": ConfigRecord({"size": 1})}), "head"),
    ],
)
def test_anything_else_is_refused(content: RecordDict, words: str, counting_job: Job) -> None:
    with pytest.raises(UpdateRejected, match=words):
        read_counts(content, counting_job)


def test_a_job_without_counts_takes_none(make_job: MakeJob) -> None:
    with pytest.raises(UpdateRejected, match="0 numbers"):
        read_counts(reply([0] * 8), make_job())


def test_what_is_written_of_as_many_sites_as_a_job_may_have_can_be_read(counting_job: Job) -> None:
    sites = [f"S{i:04d}" for i in range(MOST_JOB_SITES)]
    one = np.arange(bins(counting_job.histograms), dtype=np.int64)
    written = measured(counting_job, dict.fromkeys(sites, one), ())
    assert written is not None
    read = parse(MetricsResult, written.model_dump(mode="json"), "result.json")
    assert [own.site for own in read.sites] == sites
    assert read.together == tuple((MOST_JOB_SITES * one).tolist())
