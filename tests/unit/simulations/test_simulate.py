"""The command: what it refuses before anything is run, and what it tells of the hold-out."""

from pathlib import Path
from typing import Any

import pytest
import tomli_w

from common.config import read_toml
from common.data.writers import write_records
from simulations import simulate
from simulations.scenario import DEFAULT, Options, Scenario, load_scenario
from simulations.simulate import main

SWEEP = ("--sites", "2", "--rounds", "1", "--sweep", "adapter.method=ffa,fedavg")


@pytest.fixture
def crossed(tmp_path: Path) -> Path:
    """The default scenario with two of a site's own notes as the hold-out, declared disjoint."""
    held = load_scenario(DEFAULT, Options()).records["A"][:2]
    write_records(tmp_path / "held.jsonl", held, tagged=False)
    raw = read_toml(DEFAULT)
    raw["evaluation"] |= {"data": str(tmp_path / "held.jsonl"), "records": 2}
    raw["simulation"] = {"data": "builtin:wards"}
    path = tmp_path / "crossed.toml"
    path.write_text(tomli_w.dumps(raw))
    return path


@pytest.mark.parametrize("more", [(), SWEEP[-2:]])
def test_no_seed_at_all_is_refused(
    more: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--seeds", "0", "--out", str(tmp_path / "out"), *more]) == 2
    assert capsys.readouterr().err == "error: --seeds must be 1 to 10000, got 0\n"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("more", [(), SWEEP])
def test_a_false_declaration_is_refused_before_anything_is_run(
    more: tuple[str, ...], crossed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(crossed), "--out", str(tmp_path / "out"), *more]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        "error: evaluation.disjoint_because must be absent where the hold-out shares a unit with a "
        "site, got it with 2 records in both"
    )
    assert not (tmp_path / "out").exists()


def test_a_sweep_compares_each_data_set_once_and_says_so_once(
    crossed: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Two methods under one seed train on the same notes, under another seed on others."""
    undeclared = tmp_path / "undeclared.toml"
    raw = read_toml(crossed)
    del raw["evaluation"]["disjoint_because"]
    undeclared.write_text(tomli_w.dumps(raw))
    compared: list[Scenario] = []
    ran: list[Any] = []

    def shared(scenario: Scenario) -> int:
        compared.append(scenario)
        return 7

    monkeypatch.setattr(simulate, "shared_with_hold_out", shared)
    monkeypatch.setattr(simulate, "_sweep", lambda cells, *_: ran.extend(cells))
    assert main([str(undeclared), *SWEEP, "--seeds", "2"]) == 0
    assert len(ran) == 4
    assert len(compared) == 2
    told = capsys.readouterr().err
    assert told.count("7 records of it at a site as well") == 1
