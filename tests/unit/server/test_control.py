import json
import os
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.errors import InvalidInput, LinkDown, VeiltuneError
from server import control
from server.control import MAX_REQUEST_BYTES, ControlServer, Request


def serve(request: Request) -> Iterator[control.Line]:
    if request.command == "watch":
        for round_ in (1, 2, 3):
            yield control.event({"round": round_})
    if request.command == "stop":
        raise InvalidInput(f"job must be running, got {request.job!r}")
    if request.command == "show":
        raise ZeroDivisionError
    yield control.answer({"command": request.command, "job": request.job})


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    server = ControlServer(tmp_path, serve)
    server.start()
    yield tmp_path
    server.stop()


def talk(home: Path, data: bytes) -> dict[str, str]:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(20)
        connection.connect(str(home / control.SOCKET_NAME))
        connection.sendall(data)
        with connection.makefile("rb") as lines:
            content: dict[str, str] = json.loads(lines.readline())
    return content


def test_a_request_is_answered(home: Path) -> None:
    assert control.ask(home, Request(command="jobs", job="x")) == {"command": "jobs", "job": "x"}


def test_events_come_before_the_answer(home: Path) -> None:
    *events, answer = control.follow(home, Request(command="watch"))
    assert events == [{"round": 1}, {"round": 2}, {"round": 3}]
    assert answer["command"] == "watch"


def test_an_error_of_ours_comes_back_in_its_own_words(home: Path) -> None:
    with pytest.raises(VeiltuneError, match=r"^job must be running, got 'wards'$"):
        control.ask(home, Request(command="stop", job="wards"))


def test_a_bug_cuts_the_answer_and_the_server_lives_on(home: Path) -> None:
    with pytest.raises(LinkDown, match="must finish its answer"):
        control.ask(home, Request(command="show"))
    assert control.ask(home, Request(command="jobs"))


def test_the_socket_is_for_its_owner_alone(home: Path) -> None:
    assert stat.S_IMODE((home / control.SOCKET_NAME).stat().st_mode) == 0o600


def test_another_user_is_turned_away_even_where_the_mode_lets_them_in(home: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs the right to become another user")
    path = home / control.SOCKET_NAME
    path.chmod(0o666)
    listener = os.open(path.parent, os.O_PATH)
    script = (
        "import os, socket, sys\n"
        "os.fchdir(int(sys.argv[1])); os.setuid(65534)\n"
        "s = socket.socket(socket.AF_UNIX); s.connect('control.sock')\n"
        's.sendall(b\'{"command": "jobs"}\\n\'); print(s.makefile().readline())\n'
    )
    home.chmod(0o755)
    result = subprocess.run(
        [sys.executable, "-c", script, str(listener)],
        capture_output=True,
        text=True,
        pass_fds=[listener],
        check=False,
    )
    os.close(listener)
    assert json.loads(result.stdout) == {
        "error": "caller must be the server's own user, got uid 65534"
    }


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"\x00\xff garbage\n", "request must be one line of JSON, got something else"),
        (b"[" * 200_000 + b"\n", "request must be one line of JSON, got something else"),
        (b"[]\n", "request must be a JSON object, got another value"),
        (b'{"command": "erase"}\n', "request: command must be 'submit', 'jobs'"),
        (b'{"command": "jobs", "extra": 1}\n', "request: extra must be a known key"),
        (b"x" * (MAX_REQUEST_BYTES + 1), f"request must be at most {MAX_REQUEST_BYTES} bytes"),
    ],
)
def test_a_bad_request_is_one_sentence(home: Path, data: bytes, complaint: str) -> None:
    assert talk(home, data)["error"].startswith(complaint)


def test_a_caller_that_says_nothing_holds_nobody_up(home: Path) -> None:
    with socket.socket(socket.AF_UNIX) as silent:
        silent.connect(str(home / control.SOCKET_NAME))
        assert control.ask(home, Request(command="jobs"))


def test_callers_are_answered_side_by_side(home: Path) -> None:
    answers: list[control.Line] = []
    threads = [
        threading.Thread(
            target=lambda n=n: answers.append(
                control.ask(home, Request(command="jobs", job=str(n)))
            )
        )
        for n in range(16)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(int(line["job"]) for line in answers) == list(range(16))


def test_without_a_server_the_way_to_start_one_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        LinkDown,
        match=r"^fl-server must be running for this home, got no answer at .*/control\.sock "
        r"\(start it with: fl-server --home .* start\)$",
    ):
        control.ask(tmp_path, Request(command="jobs"))


def test_the_socket_of_a_killed_server_is_no_answer_and_no_obstacle(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(tmp_path / control.SOCKET_NAME))
    with pytest.raises(LinkDown, match="must be running for this home"):
        control.ask(tmp_path, Request(command="jobs"))
    server = ControlServer(tmp_path, serve)
    server.start()
    assert control.ask(tmp_path, Request(command="jobs"))
    server.stop()
    assert not (tmp_path / control.SOCKET_NAME).exists()


def test_a_home_too_deep_for_a_socket_is_a_clear_error(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 120)
    deep.mkdir()
    with pytest.raises(InvalidInput, match=r"got: AF_UNIX path too long \(choose a shorter"):
        ControlServer(deep, serve)
    with pytest.raises(LinkDown, match="AF_UNIX path too long"):
        control.ask(deep, Request(command="jobs"))
