"""A server to join, and its daemon; a file with needs of its own defines these itself."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from common.flower import become_server
from server.daemon import Daemon
from server.enrolment import init_server
from tests.integration.live import HOST, free_port, running_daemon


@pytest.fixture
def server(tmp_path: Path) -> Path:
    """A server's home, with a port of its own for those who join."""
    become_server()
    home, link, joins = tmp_path / "server", free_port(), free_port()
    address = f"{HOST}:{link}"
    init_server(home, hosts=[HOST], address=address, listen=address)
    with (home / "server.toml").open("a") as file:
        file.write(f'join_listen = "{HOST}:{joins}"\njoin_address = "{HOST}:{joins}"\n')
    return home


@pytest.fixture
def daemon(server: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Daemon]:
    """It runs, and looks after itself ten times a second."""
    monkeypatch.setattr("server.upkeep.TICK_S", 0.1)
    with running_daemon(server) as daemon:
        yield daemon
