"""Whether a job's file of records is still the one that was read.

A job trains on what was read when it was made ready, until this process ends. A site that changes
the file meanwhile should know that, and that a restart would go on with other records; it reads so
in its own log. No message and no charge depends on it: a round costs the same whatever it read.

Not covered: a change that keeps both size and time; what changed.
"""

from typing import NamedTuple

import structlog

from client.config import SiteHome
from common.job import Job

log = structlog.get_logger(__name__)


class Stamp(NamedTuple):
    """What of a file changes when it is written. Sensitive."""

    size_bytes: int
    modified_ns: int


def stamp(home: SiteHome, job: Job) -> Stamp | None:
    """That of the job's file of records; ``None`` where there is none to be seen."""
    data_set = home.config.data.get(job.data.name)
    if data_set is None:
        return None
    try:
        found = home.path(data_set.path).stat()
    except OSError:
        return None
    return Stamp(found.st_size, found.st_mtime_ns)


def warn_if_changed(home: SiteHome, job: Job, before: Stamp | None) -> Stamp | None:
    """Say in the site's own log if the file is another than ``before``; its stamp of now."""
    found = stamp(home, job)
    if found != before:
        log.warning(
            "records changed during a job",
            job=job.job.name,
            data=job.data.name,
            remedy="it goes on with those read before; change them between jobs",
        )
    return found
