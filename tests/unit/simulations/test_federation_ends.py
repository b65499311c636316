"""How the end of a job over the link reaches whoever waits for it."""

from pathlib import Path
from typing import Any

import pytest

from common.errors import JobStopped, Refusal
from simulations import federation
from simulations.federation import Federation
from simulations.scenario import DEFAULT, Options, load_scenario


@pytest.mark.parametrize(("state", "error"), [("failed", Refusal), ("stopped", JobStopped)])
def test_a_failed_job_is_a_refusal_and_a_stopped_one_is_not(
    state: str, error: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = {"state": state, "reason": "round 2 must have 2 usable updates, got 0"}
    monkeypatch.setattr(federation, "follow", lambda *_: iter([{"round": {"round": 1}}, said]))
    scenario = load_scenario(DEFAULT, Options())
    seen: list[dict[str, Any]] = []
    running = Federation(tmp_path, scenario.job, scenario.records)
    with pytest.raises(error, match="round 2 must have 2 usable updates") as caught:
        running.watch(seen.append)
    assert seen == [{"round": 1}]
    assert isinstance(caught.value, Refusal) is (state == "failed")
