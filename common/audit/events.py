"""What was executed, as a JSON file: a list of Gaussian steps, one entry a job or a round.

Not covered: whether the steps were executed.
"""

from pathlib import Path
from typing import Annotated

from pydantic import ConfigDict, Field

from common.config import Name, Section, Sha256, parse
from common.errors import InvalidInput
from common.privacy.event import MOST_STEPS, GaussianSteps
from common.strict_json import read_json

MAX_EVENTS_BYTES = 4 * 1024 * 1024
MAX_EVENTS = 10_000


class Event(Section):
    """One entry; ``job`` and ``unit`` say whose it is and what one unit of it was."""

    model_config = ConfigDict(strict=True)

    sampling_rate: Annotated[float, Field(gt=0, le=1)]
    noise_multiplier: Annotated[float, Field(ge=0)]
    steps: Annotated[int, Field(ge=0, le=MOST_STEPS)]
    unit: Name = "record"
    job: Sha256 | None = None


class Events(Section):
    """The file's list."""

    model_config = ConfigDict(strict=True)

    events: Annotated[list[Event], Field(max_length=MAX_EVENTS)]

    @property
    def unit(self) -> str:
        """The unit of every entry."""
        return self.events[0].unit if self.events else "record"

    def steps(self) -> list[GaussianSteps]:
        """The entries as accountants take them."""
        return [GaussianSteps(e.sampling_rate, e.noise_multiplier, e.steps) for e in self.events]


def read_events(path: Path) -> Events:
    """Read a list of at most 10,000 entries in at most 4 MiB.

    Raises:
        InvalidInput: missing, too large, no JSON, or not such a list; every fault by its key. Or
            units that differ: an epsilon for a record adds nothing to one for a patient.
    """
    listed = parse(Events, {"events": read_json(path, max_bytes=MAX_EVENTS_BYTES)}, path.name)
    units = sorted({event.unit for event in listed.events})
    if len(units) > 1:
        raise InvalidInput(f"{path.name}: unit must be the same in all events, got {units}")
    return listed
