"""The thread at a site that handles the server's messages, one at a time.

It outlives connections: a message that the server sends again after a reconnect, while it is still
being handled, is not handled twice; its reply goes to the session that asked last.

Not covered: the durable memory of replies (client/outbox.py).
"""

import queue
import sys
import threading
from collections.abc import Callable, Iterator

import structlog
from flwr.app import Error, Message

from common.errors import VeiltuneError
from common.failpoints import reach, register
from common.flower import message_to_bytes
from common.link import framing
from common.log import frames

Handle = Callable[[Message], Message]
Send = Callable[[Iterator[bytes]], None]

_UNKNOWN_ERROR = 0  # Flower's code for an error without a kind

log = structlog.get_logger(__name__)

register("site.reply-made", "site.reply-queued")


class Worker:
    """Takes messages from the session that is attached and gives replies to it."""

    def __init__(self, handle: Handle) -> None:
        self._handle = handle
        self._lock = threading.Lock()
        self._send: Send | None = None
        self._asked: dict[str, str] = {}  # message id -> job, asked for in this session
        self._unanswered: set[str] = set()  # queued or being handled
        self._queue: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._failure: BaseException | None = None
        threading.Thread(target=self._work, name="worker", daemon=True).start()

    def attach(self, send: Send) -> None:
        """Replies go to ``send`` from now on, if that session has asked for them."""
        with self._lock:
            self._send, self._asked = send, {}

    def detach(self, send: Send) -> None:
        """Replies that become ready now are dropped."""
        with self._lock:
            if self._send == send:
                self._send, self._asked = None, {}

    def accept(self, message: Message, job_sha256: str) -> None:
        """Queue a message, unless it is there already."""
        message_id = message.metadata.message_id
        with self._lock:
            self._asked[message_id] = job_sha256
            if message_id in self._unanswered:
                return
            self._unanswered.add(message_id)
        self._queue.put(message)

    @property
    def is_idle(self) -> bool:
        """Whether every message that came in was answered."""
        with self._lock:
            return not self._unanswered

    @property
    def has_failed(self) -> bool:
        """Whether a reply could not be written; the thread is gone then."""
        return self._failure is not None

    def raise_failure(self) -> None:
        """Raise in the caller's thread what ended this one."""
        if self._failure is not None:
            raise self._failure

    def _work(self) -> None:
        try:
            while True:
                message = self._queue.get()
                self._reply(message, self._answer(message))
        finally:
            self._failure = sys.exception()

    def _answer(self, message: Message) -> Message:
        try:
            return self._handle(message)
        except VeiltuneError as error:
            # The reason may follow from records: it stays here.
            log.error("message refused", type=message.metadata.message_type, reason=str(error))
        # As broad as can be: whatever a message runs into, out of memory included, the site goes on
        # for its other jobs. An exception's words may hold a record: no log or server gets them.
        except Exception as error:  # noqa: BLE001
            log.error(
                "message broke",
                type=message.metadata.message_type,
                error=type(error).__name__,
                where=frames(error),
            )
        return Message(Error(_UNKNOWN_ERROR, "not participating"), reply_to=message)

    def _reply(self, message: Message, reply: Message) -> None:
        message_id = message.metadata.message_id
        body = message_to_bytes(reply)
        reach("site.reply-made")
        with self._lock:
            self._unanswered.discard(message_id)
            job_sha256 = self._asked.pop(message_id, None)
            if self._send is None or job_sha256 is None:
                log.warning("reply dropped", reason="the link is down", bytes=len(body))
                return
            metadata = reply.metadata
            self._send(
                framing.split(
                    body,
                    message_type=metadata.message_type,
                    job_sha256=job_sha256,
                    message_id=metadata.message_id,
                    reply_to=metadata.reply_to_message_id,
                )
            )
        reach("site.reply-queued")
