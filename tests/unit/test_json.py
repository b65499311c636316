"""``--json`` of every command that shows something: one style, held against a strict reader."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import typer
from typer.main import get_command

from client import audit_cli
from client.cli import app as fl_client
from common.cli import print_json, run
from common.files import write_file
from server.cli import app as fl_server

APPS: dict[str, typer.Typer] = {
    "fl-server": fl_server,
    "fl-client": fl_client,
    "fl-audit": audit_cli.app,
}
SHOWS = {
    "fl-server jobs",
    "fl-server show",
    "fl-server doctor",
    "fl-server invited",
    "fl-server sites",
    "fl-server rotate status",
    "fl-client doctor",
    "fl-client roster",
    "fl-client status",
    "fl-client jobs",
    "fl-client preflight",
    "fl-client predict",
    "fl-client data check",
    "fl-client ledger show",
    "fl-client ledger verify",
    "fl-audit epsilon",
    "fl-audit calibrate",
    "fl-audit compose",
    "fl-audit ledger",
    "fl-audit heads",
    "fl-audit result",
    "fl-audit mechanism",
    "fl-audit canary",
    "fl-audit membership",
    "fl-audit inversion",
    "fl-audit verify",
}
# These change something, and say what; or print one thing that is for another program as it is.
ACTS = {
    "fl-server init",
    "fl-server enroll",
    "fl-server revoke",
    "fl-server start",
    "fl-server submit",
    "fl-server stop",
    "fl-server export",
    "fl-server backup",
    "fl-server restore",
    "fl-server systemd",
    "fl-server hash",
    "fl-server invite",
    "fl-server roster draft",
    "fl-server roster sign",
    "fl-server roster publish",
    "fl-server rotate begin",
    "fl-server rotate end",
    "fl-server rotate intermediate",
    "fl-client join",
    "fl-client renew",
    "fl-client init",
    "fl-client install",
    "fl-client approve",
    "fl-client refuse",
    "fl-client fetch",
    "fl-client systemd",
    "fl-client ledger export",
    "fl-client ledger rekey",
}


def commands(command: Any, path: str) -> Iterator[tuple[str, click.Command]]:  # noqa: ANN401
    below = getattr(command, "commands", {})
    if not below:
        yield path, command
    for name, one in below.items():
        yield from commands(one, f"{path} {name}")


ALL = {path: c for name, app in APPS.items() for path, c in commands(get_command(app), name)}


def test_every_command_is_known_to_show_or_to_act() -> None:
    assert set(ALL) == SHOWS | ACTS


@pytest.mark.parametrize("path", sorted(ALL))
def test_whatever_shows_something_shows_it_to_programs_too(path: str) -> None:
    found = [option for option in ALL[path].params if "--json" in option.opts]
    assert bool(found) == (path in SHOWS)
    for option in found:
        assert isinstance(option, click.Option)
        assert option.is_flag
        assert option.help == "Print JSON."


def strict(text: str) -> Any:  # noqa: ANN401 -- what JSON can hold
    """Read as a strict program would, and check the style that all share."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        assert len({key for key, _ in pairs}) == len(pairs)
        return dict(pairs)

    def never(name: str) -> float:
        raise AssertionError(f"{name} is no JSON")

    assert text.isascii()
    assert text.endswith("\n")
    found = json.loads(text, object_pairs_hook=once, parse_constant=never)
    assert text == json.dumps(found, indent=2) + "\n"
    assert isinstance(found, dict | list)
    return found


# Where keys are names that people gave: labels, sites.
_NAMED = {"labels", "population"}


def keys(value: Any) -> Iterator[str]:  # noqa: ANN401
    if isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from () if key in _NAMED else keys(item)
    elif isinstance(value, list):
        for item in value:
            yield from keys(item)


@pytest.fixture
def shown(capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Run a command; its JSON, whose style was checked."""

    def show(name: str, *argv: str, status: int = 0) -> Any:  # noqa: ANN401
        capsys.readouterr()
        assert run(APPS[name], [*argv, "--json"], name) == status
        said = capsys.readouterr()
        assert not said.err
        found = strict(said.out)
        assert [key for key in keys(found) if not re.fullmatch("[a-z][a-z0-9_]*", key)] == []
        return found

    return show


def test_what_json_has_no_number_for_is_null_and_no_text_is_raw(
    capsys: pytest.CaptureFixture[str],
) -> None:
    print_json({"epsilon": float("inf"), "label": "Übelkeit\x1b[2J\u202e", "rows": [float("nan")]})
    found = strict(capsys.readouterr().out)
    assert found == {"epsilon": None, "label": "Übelkeit\x1b[2J\u202e", "rows": [None]}


EPSILON = ("--sampling-rate", "0.04", "--noise-multiplier", "0.9", "--steps", "20")


def test_an_auditors_figures(shown: Callable[..., Any], tmp_path: Path) -> None:
    found = shown("fl-audit", "epsilon", *EPSILON, "--delta", "1e-5", "--records", "3")
    assert found["steps"] == 20
    assert found["pld"] < found["group"]["pld"]
    target = ("--epsilon", "3", "--delta", "1e-5", "--sampling-rate", "0.04", "--steps", "20")
    assert shown("fl-audit", "calibrate", *target)["pld"] <= 3
    events = [{"sampling_rate": 0.04, "noise_multiplier": 0.9, "steps": 20}]
    write_file(tmp_path / "events.json", json.dumps(events).encode())
    composed = shown("fl-audit", "compose", str(tmp_path / "events.json"), "--delta", "1e-5")
    assert composed["pld"] == found["pld"]
