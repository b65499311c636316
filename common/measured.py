"""The part of ``result.json`` that comes from sites' own held-out records, where a job has it.

Every figure can be computed anew from the sites' noised counts beside it; ``fl-audit result`` does
so (common/audit/recompute.py).

Not covered: that the sites counted what they say.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Annotated, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field, model_validator
from scipy.stats import norm

from common.config import Name, Section
from common.estimates import CONFIDENCE, Estimate, estimates
from common.histograms import COLUMNS, MOST_COUNT, Histogram, MetricName, bins, sensitivity
from common.job import Job
from common.privacy.counts import variance
from common.privacy.noise import MAX_DEVIATION

_Share = Annotated[float, Field(ge=0, le=1)]
_Count = Annotated[int, Field(gt=-MOST_COUNT, lt=MOST_COUNT)]


class _Record(Section):
    model_config = ConfigDict(strict=True)


class HistogramResult(_Record):
    """One histogram's bins, rows by columns, and the most that a record adds to it."""

    name: MetricName
    rows: Annotated[tuple[str, ...], Field(strict=False, min_length=1)]
    columns: Annotated[tuple[str, ...], Field(strict=False, min_length=1)]
    most: Annotated[int, Field(ge=1, le=10_000)]

    @model_validator(mode="after")
    def _has_its_columns(self) -> Self:
        if self.columns != COLUMNS[self.name]:
            raise ValueError(f"columns of {self.name} must be {', '.join(COLUMNS[self.name])}")
        return self

    @property
    def as_histogram(self) -> Histogram:
        """As it is counted in."""
        return Histogram(self.name, self.rows, self.columns, self.most)


class SiteCounts(_Record):
    """A site's counts as they came, noise and all: some may be below 0."""

    site: Name
    counts: Annotated[tuple[_Count, ...], Field(strict=False, min_length=1)]


class ShareResult(_Record):
    """A share and its interval; null where noise leaves no estimate."""

    value: _Share | None
    low: _Share
    high: _Share


class EstimateResult(_Record):
    """A measure of one row: all sites together, and the worst of them."""

    histogram: MetricName
    row: str
    measure: str
    together: ShareResult
    worst_site: str
    worst: ShareResult


class MetricsResult(_Record):
    """Counts of held-out records of the sites, and what they say.

    Attributes:
        hold_out: the share of each site's units that train nothing and are counted.
        records_per_unit: the most of a unit that count.
        sensitivity: what one unit can move a site's counts, in L2 over all histograms.
        deviation: the standard deviation of the noise on each of a site's counts.
        confidence: of every interval.
        histograms: in the order of the counts.
        sites: those that answered.
        silent: those that gave no counts, and were asked or (their last word is missing) may have
            been; they count as charged.
        together: all sites' counts added up, and clipped at 0 after that.
        estimates: shares.
    """

    hold_out: _Share
    records_per_unit: Annotated[int, Field(ge=1, le=10_000)]
    sensitivity: Annotated[float, Field(gt=0)]
    deviation: Annotated[float, Field(gt=0, le=MAX_DEVIATION)]
    confidence: _Share
    histograms: Annotated[tuple[HistogramResult, ...], Field(strict=False, min_length=1)]
    sites: Annotated[tuple[SiteCounts, ...], Field(strict=False, max_length=10_000)]
    silent: Annotated[tuple[Name, ...], Field(strict=False)]
    together: Annotated[tuple[int, ...], Field(strict=False)]
    estimates: Annotated[tuple[EstimateResult, ...], Field(strict=False)]

    @model_validator(mode="after")
    def _whole(self) -> Self:
        size = bins([one.as_histogram for one in self.histograms])
        wrong = [one.site for one in self.sites if len(one.counts) != size]
        if wrong:
            raise ValueError(f"metrics.sites must have {size} counts each, got others: {wrong[:5]}")
        return self

    @property
    def half_width(self) -> float:
        """Of the interval around each of ``together``, for the noise alone."""
        noise = variance(self.deviation) * max(1, len(self.sites))
        return float(norm.isf((1 - self.confidence) / 2)) * math.sqrt(noise)

    def recomputed(self) -> "MetricsResult":
        """The same, every figure computed anew from the sites' counts, bins and noise."""
        return _measured(
            self,
            [one.as_histogram for one in self.histograms],
            {one.site: np.array(one.counts, dtype=np.int64) for one in self.sites},
        )


def measured(
    job: Job, counts: Mapping[str, NDArray[np.int64]], silent: Sequence[str]
) -> MetricsResult | None:
    """What the counts of ``job`` say; ``None`` for a job that has none.

    Args:
        job: names the bins; its noise is known.
        counts: of each site that answered, (bins,).
        silent: sites that were asked and gave none.
    """
    if job.metrics is None:
        return None
    empty = MetricsResult(
        hold_out=job.metrics.hold_out,
        records_per_unit=job.metrics_cap,
        sensitivity=sensitivity(job.histograms, job.metrics_cap),
        deviation=job.metrics_deviation,
        confidence=CONFIDENCE,
        histograms=tuple(
            HistogramResult(name=h.name, rows=h.rows, columns=h.columns, most=h.most)
            for h in job.histograms
        ),
        sites=(),
        silent=tuple(sorted(silent)),
        together=(),
        estimates=(),
    )
    return _measured(empty, job.histograms, counts)


def _measured(
    stated: MetricsResult, histograms: Sequence[Histogram], counts: Mapping[str, NDArray[np.int64]]
) -> MetricsResult:
    total = sum(counts.values(), np.zeros(bins(histograms), dtype=np.int64))
    found = estimates(
        counts,
        histograms,
        variance=variance(stated.deviation),
        cap=stated.records_per_unit,
    )
    return stated.model_copy(
        update={
            "sensitivity": sensitivity(histograms, stated.records_per_unit),
            "sites": tuple(
                SiteCounts(site=site, counts=tuple(own.tolist()))
                for site, own in sorted(counts.items())
            ),
            "together": tuple(np.maximum(total, 0).tolist()) if counts else (),
            "estimates": tuple(_estimate(one) for one in found),
        }
    )


def _estimate(one: Estimate) -> EstimateResult:
    return EstimateResult.model_validate(asdict(one))
