"""What the studies of methods and of accuracy ask for, without loading any data."""

from typing import Any

import pytest

from simulations.scenario import Options
from simulations.studies import methods


@pytest.fixture
def options(monkeypatch: pytest.MonkeyPatch) -> list[Options]:
    """What each run was asked for, in place of its scenario."""
    asked: list[Options] = []

    def keep(_: object, made: Options) -> Any:  # noqa: ANN401
        asked.append(made)
        return None

    monkeypatch.setattr(methods, "load_scenario", keep)
    return asked
