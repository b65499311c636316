"""Daemons and sites that run beside a test, in its own process."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from client import serve
from client.config import SiteHome
from common.invitation import Token
from server.daemon import Daemon

HOST = "127.0.0.1"
PATIENCE_S = 30.0

Start = Callable[[SiteHome], None]


def free_port() -> int:
    with closing(socket.create_server((HOST, 0))) as taken:
        return int(taken.getsockname()[1])


def is_open(token: Token) -> bool:
    """Whether the port that it names takes connections."""
    host, port = token.address.split(":")
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except ConnectionRefusedError:
        return False
    return True


def eventually(condition: Callable[[], bool]) -> None:
    pause = threading.Event()
    for _ in range(int(PATIENCE_S / 0.05)):
        if condition():
            return
        pause.wait(0.05)
    pytest.fail("nothing happened")


@contextmanager
def running_daemon(server: Path) -> Iterator[Daemon]:
    daemon = Daemon(server)
    daemon.start()
    yield daemon
    daemon.stop()


@contextmanager
def running_sites() -> Iterator[Start]:
    """Starts sites, each in a thread; all end with the block."""
    stop, threads = threading.Event(), list[threading.Thread]()

    def start(home: SiteHome) -> None:
        threads.append(threading.Thread(target=serve.run, args=(home, stop), daemon=True))
        threads[-1].start()

    yield start
    stop.set()
    for thread in threads:
        thread.join(PATIENCE_S)
