"""README against the code: the tree, the commands, the links. The oracle is the code itself."""

import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import typer
from typer.main import get_command

from client import audit_cli
from client.cli import app as fl_client
from common.cli import run
from common.job import load_job
from server.cli import app as fl_server

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text("utf-8")
PAGES = ("README.md", "CONTRIBUTING.md", "docs/design.md", "docs/operations.md", "docs/runbook.md")
APPS: dict[str, typer.Typer] = {
    "fl-server": fl_server,
    "fl-client": fl_client,
    "fl-audit": audit_cli.app,
}
PACKAGES = ("client", "common", "server", "simulations")


def tree_entries() -> dict[str, str]:
    """Path -> gloss, from the README's tree; folders end in a slash."""
    block = README.split("## The tree")[1].split("```text\n")[1].split("```")[0]
    entries, folders = {}, list[str]()
    for line in block.splitlines():
        match = re.fullmatch(r"( *)(\S+)  +(\S.*)", line)
        assert match, f"not a line of a tree: {line!r}"
        depth = len(match[1]) // 2
        folders[depth:] = [match[2]]
        path = "".join(folders)
        assert path not in entries, f"twice in the tree: {path}"
        entries[path] = match[3]
    return entries


def source_files() -> set[str]:
    """Every hand-written source file of the packages; a folder stands for its ``__init__.py``."""
    found = set()
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*"):
            if path.suffix not in (".py", ".proto", ".toml") or "_pb2" in path.name:
                continue
            name = path.relative_to(ROOT).as_posix()
            found.add(name.removesuffix("__init__.py"))
    return found


def invocations(text: str) -> Iterator[list[str]]:
    """Each ``fl-...`` command line in a page's fences and inline code, as its words."""
    fence = re.compile(r"^```\w*\n(.*?)^```$", re.DOTALL | re.MULTILINE)
    code = [*fence.findall(text), *re.findall(r"`([^`\n]+)`", fence.sub("", text))]
    for line in "\n".join(code).splitlines():
        if line.startswith("fl-"):
            yield shlex.split(line, comments=True)


def commands_of(app: typer.Typer) -> dict[str, Any]:
    return dict(getattr(get_command(app), "commands", {}))


def resolve(name: str, arguments: list[str]) -> tuple[list[str], set[str]]:
    """The commands that an invocation reaches, and the options that are not theirs."""
    command: Any = get_command(APPS[name])
    reached, strangers, rest = list[str](), set[str](), iter(arguments)
    for argument in rest:
        options = {text: option for option in command.params for text in option.opts}
        if argument.startswith("--"):
            if argument not in options:
                strangers.add(argument)
            elif not options[argument].is_flag:
                next(rest, None)
        elif hasattr(command, "commands"):
            reached.append(argument)
            command = command.commands.get(argument, command)
    return reached, strangers - {"--help"}


def test_the_tree_names_every_source_file_and_no_other() -> None:
    named = {path for path in tree_entries() if not (ROOT / path).is_dir()}
    packages = {path for path in tree_entries() if (ROOT / path / "__init__.py").is_file()}
    assert named | packages == source_files()


def test_every_gloss_has_three_to_eight_words() -> None:
    assert not {p: gloss for p, gloss in tree_entries().items() if not 3 <= len(gloss.split()) <= 8}


@pytest.mark.parametrize("page", PAGES)
def test_every_command_and_option_in_a_page_exists(page: str) -> None:
    for name, *arguments in invocations((ROOT / page).read_text("utf-8")):
        assert name in APPS, f"no such program: {name}"
        reached, strangers = resolve(name, arguments)
        assert not strangers, f"{name} {arguments}"
        command: Any = get_command(APPS[name])
        for word in reached:
            assert word in command.commands, f"{name} {arguments}"
            command = command.commands[word]


@pytest.mark.parametrize("name", sorted(APPS))
def test_every_console_script_is_documented(name: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert set(project["scripts"]) == set(APPS)
    assert f"\n{name} " in README


@pytest.mark.parametrize(
    ("name", "command"), [(name, c) for name, app in APPS.items() for c in commands_of(app)]
)
def test_every_command_is_documented(name: str, command: str) -> None:
    found = [resolve(n, arguments)[0][:1] for n, *arguments in invocations(README) if n == name]
    assert [command] in found


@pytest.mark.parametrize("name", sorted(APPS))
def test_every_help_is_plain_whole_and_fits_80_columns(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for path, command in tree_of(get_command(APPS[name])):
        assert run(APPS[name], [*path, "--help"], name) == 0
        usage, *lines = capsys.readouterr().out.splitlines()
        assert usage.startswith(" ".join(["Usage:", name, *path]))
        assert lines
        for line in lines:
            assert len(line) <= 80
            assert line.isascii()
            assert "\\" not in line
            assert not line.endswith("...")
        rows = described("\n".join(lines))
        assert len(rows) >= len(command.params) + 1  # and --help
        assert not [row for row, words in rows.items() if not re.match("[A-Za-z]", words)]


def described(text: str) -> dict[str, str]:
    """Each argument and option of a help text, with what is said of it."""
    _, *sections = re.split(r"^(?:Arguments|Options|Commands):\n", text, flags=re.MULTILINE)
    rows = re.split(r"^  (?=\S)", "\n".join(sections), flags=re.MULTILINE)[1:]
    named = (re.split(r"\s{2,}", row.strip(), maxsplit=1) for row in rows)
    return {row[0]: row[1] if row[1:] else "" for row in named}


def tree_of(
    command: click.Command, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command of a program, with the words that lead to it."""
    yield path, command
    for name, below in getattr(command, "commands", {}).items():
        yield from tree_of(below, (*path, name))


@pytest.mark.parametrize(
    ("marker", "told"), [("install", "simulations/simulate.py"), ("test", "-m pytest")]
)
def test_a_marked_command_is_one_line_in_a_fence(marker: str, told: str) -> None:
    # As .ci/run cuts it out: marker, fence, command, fence.
    _, line, rest = README.partition(f"<!-- command: {marker} -->\n")
    assert line, f"no marker for {marker}"
    fence, command, end, *_ = rest.splitlines()
    assert (fence, end) == ("```bash", "```")
    assert command.startswith((".venv/bin/", "python3 -m venv .venv &&"))
    assert told in command


@pytest.mark.parametrize("page", PAGES)
def test_every_file_that_a_page_links_to_is_there(page: str) -> None:
    source = ROOT / page
    targets = re.findall(r"\]\(([^)#]+)[^)]*\)", source.read_text("utf-8"))
    local = [target for target in targets if not target.startswith("http")]
    assert not [target for target in local if not (source.parent / target).exists()]


def test_the_run_that_the_readme_shows_is_the_default_job() -> None:
    job = load_job(ROOT / "simulations/scenarios/hospital.toml")
    assert f"noise multiplier {job.noise_multiplier:.3f}\n" in README
    rounds = re.findall(r"^round (\d+)/(\d+)  accuracy", README, re.MULTILINE)
    last = job.training.rounds
    assert rounds == [(str(n), str(last)) for n in range(last + 1)]
    assert f"{job.steps} steps, 600 notes a hospital and epsilon {job.privacy.epsilon:g}" in README
    audited = f"--sampling-rate {job.privacy.sampling_rate} --noise-multiplier "
    assert f"{audited}{job.noise_multiplier:.3f} --steps {job.steps}" in README
