"""A socket of ours stands for systemd's; the words are those of sd_notify(3)."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from common import notify


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        yield listener


def test_ready_and_status_are_one_message_and_a_status_is_one_line(systemd: socket.socket) -> None:
    notify.ready("listens on [::]:8443")
    assert systemd.recv(4096) == b"READY=1\nSTATUS=listens on [::]:8443"
    notify.now("not connected: server said\nREADY=1\x1b[2J " + "x" * 5000)
    said = systemd.recv(8192).decode()
    assert said.startswith("STATUS=not connected: server said READY=1 [2J xxx")
    assert "\n" not in said
    assert len(said) < 400
    notify.stopping()
    assert systemd.recv(4096) == b"STOPPING=1"


def test_an_abstract_socket_is_reached_too(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind("\0veiltune-test-notify")
        listener.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", "@veiltune-test-notify")
        notify.stopping()
        assert listener.recv(100) == b"STOPPING=1"


@pytest.mark.parametrize("place", ["", "relative", "/nowhere/at/all"])
def test_without_systemd_nothing_happens(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", place)
    notify.ready("up")
