"""A site at work: one process a home, linked to the server until it is told to stop.

The model libraries take seconds to import. They load beside the link, so that the site is there at
once and a stop never waits for them; the first message waits.

Not covered: what a message does (client/app.py), how the link stays up (client/session.py).
"""

import contextlib
import os
import queue
import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import structlog
from flwr.app import Message

from client import presence, session
from client.account import open_account
from client.config import SiteHome
from client.identity import Identity, read_identity
from client.metrics import SiteMetrics
from client.outbox import Outbox
from client.presence import Presence
from client.session import State
from client.upkeep import Upkeep
from common import notify, volume
from common.errors import StorageFailed
from common.flower import new_context
from common.link.framing import UNKNOWN_JOB_CAP_BYTES
from common.link.identity import node_id
from common.metrics import serving
from common.phases import MAX_RECEIPTS_BYTES
from common.process import leave, watch_threads

if TYPE_CHECKING:
    from types import FrameType

EXPIRES_SOON_DAYS = 7  # renewed at 10 days left; then something is wrong
_VITAL = ("upkeep",)
_FAILED = 1  # not 2, after which systemd leaves it alone

log = structlog.get_logger(__name__)


def serve(home: SiteHome, metrics: str = "") -> None:
    """``run`` until SIGTERM or SIGINT, and leave the process. In the main thread only.

    A fault nobody foresaw that ends the thread which looks after certificates ends the process too,
    with status 1: without it the site would stay, and take part in nothing, until somebody looks.
    """
    stop = threading.Event()
    # A handler that set the event itself would wait for a lock that the code it interrupts holds,
    # such as itself at a second signal; a simple queue has none.
    asked: queue.SimpleQueue[int | str] = queue.SimpleQueue()
    failed = list[str]()

    def ask(number: int, _: "FrameType | None") -> None:
        asked.put(number)

    def obey() -> None:
        if isinstance(reason := asked.get(), str):
            failed.append(reason)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, ask)
    watch_threads(_VITAL, asked.put)
    threading.Thread(target=obey, name="signals", daemon=True).start()
    run(home, stop, metrics)
    leave(_FAILED if failed else 0)  # a model may be training in the worker's thread


def run(home: SiteHome, stop: threading.Event, metrics: str = "") -> None:
    """Take part in the federation until ``stop`` is set.

    Args:
        home: the site's.
        stop: ends it.
        metrics: host:port on loopback to serve figures at; none for an empty one.

    Raises:
        InvalidInput: another process runs this home, its certificate cannot be used, or the
            metrics' address cannot be had.
        StorageFailed: the account cannot be opened, or is in doubt.
    """
    identity = read_identity(home)
    identity.check()
    with contextlib.ExitStack() as held:
        held.enter_context(presence.hold(home.folder))
        outbox = open_account(home)
        figures = SiteMetrics(home, outbox)
        observer = Observer(home.folder, figures)
        held.enter_context(serving(metrics, figures))
        _warn(home, identity)
        log.info("site starts", site=home.site, server=home.config.server, home=str(home.folder))
        notify.ready(f"site {home.site} is up, not yet connected to {home.config.server}")
        threading.Thread(target=_warm_up, name="warm-up", daemon=True).start()
        context = new_context(
            node_id(home.site), node_config={"site": home.site, "home": str(home.folder)}
        )

        def handle(message: Message) -> Message:
            from client.app import app

            return app(message, context)

        upkeep = Upkeep(home, identity)
        threading.Thread(target=upkeep.run, args=(stop,), name="upkeep", daemon=True).start()
        upkeep.wait(stop)
        session.run(
            upkeep.current,
            handle,
            lambda job_sha256: _cap(outbox, job_sha256),
            stop,
            observer,
        )
    notify.stopping()
    log.info("site stopped", site=home.site)


def _cap(outbox: Outbox, job_sha256: str) -> int:
    """The most bytes of a message: that of its job, and the receipts that come with an order."""
    cap = outbox.cap(job_sha256)
    return UNKNOWN_JOB_CAP_BYTES if cap is None else cap + MAX_RECEIPTS_BYTES


class Observer:
    """Keeps the home's state file; one that cannot be written ends nothing."""

    def __init__(self, home: Path, figures: SiteMetrics | None = None) -> None:
        self._home = home
        self._figures = figures
        self._last = Presence(os.getpid(), connected=False, since=presence.now(), reason="starts")
        self._write()

    def __call__(self, state: State) -> None:
        """Note a state; its time is that of the last change between up and down."""
        changed = state.connected != self._last.connected
        since = presence.now() if changed else self._last.since
        self._last = Presence(self._last.pid, state.connected, since, state.reason)
        self._write()
        notify.now("connected" if state.connected else f"not connected: {state.reason}")

    def _write(self) -> None:
        if self._figures is not None:
            self._figures.presence = self._last
        try:
            presence.write(self._home, self._last)
        except StorageFailed as error:
            log.warning("state file not written", reason=str(error))


def _warn(home: SiteHome, identity: Identity) -> None:
    """Say what will be trouble later."""
    if identity.days_left < EXPIRES_SOON_DAYS:
        log.warning(
            "certificate expires soon",
            days_left=identity.days_left,
            remedy=f"if renewals fail, the operator enrolls {home.site}.csr anew",
        )
    for name, data_set in home.config.data.items():
        if not home.path(data_set.path).is_file():
            log.warning("data file missing", data=name, path=str(home.path(data_set.path)))
    if not home.config.data:
        log.warning("no data set mapped", file=str(home.folder / "site.toml"))
    with contextlib.suppress(OSError):  # a kernel that does not say
        lies_on = volume.file_system(volume.magic(home.folder))
        if lies_on.mark == "fault":
            log.warning("home on an unsafe disk", found=lies_on.found, remedy=lies_on.advice)


def _warm_up() -> None:
    # A broken installation is raised again, and reported, by the first message.
    with contextlib.suppress(ImportError):
        import client.app  # noqa: F401
