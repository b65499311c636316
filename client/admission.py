"""Whether the server admits this site today, and what time the server has.

It is asked for the adapter of a job that nobody has: whom the roster does not hold is told so, and
anybody else that there is no such job. No session is opened, so a running site keeps its own.

Not covered: why there is no connection (client/probe.py).
"""

import math
import time
from dataclasses import dataclass

import grpc

from client.session import LinkConfig
from common.errors import LinkDown
from common.link import federation_pb2 as wire
from common.link import framing
from common.link.channel import FETCH, SERVICE, TIME_KEY, Credentials, open_channel

_NO_JOB = "0" * 64
_TURNED_AWAY = (wire.Refusal.IDENTITY, wire.Refusal.ROSTER)
_MOST_WORDS = 300


@dataclass(frozen=True, slots=True)
class Admission:
    """What the server answered.

    Attributes:
        refusal: the server's words where it turns this site away; else empty.
        ahead_s: how far its clock is ahead of this machine's; ``None`` where it does not say.
        within_s: how far off that may be: half of what the answer took.
    """

    refusal: str
    ahead_s: float | None
    within_s: float


def ask(config: LinkConfig, *, timeout_s: float = 5.0) -> Admission:
    """Ask the server of ``config``.

    Raises:
        LinkDown: there was no answer, or none that is this protocol.
        UpdateRejected: a frame that cannot be read.
    """
    credentials = Credentials(config.root_pem, config.certificate_pem, config.key_pem)
    request = wire.FetchRequest(job_sha256=_NO_JOB).SerializeToString()
    try:
        with open_channel(config.server, credentials) as channel:
            # Connected first: what that takes would blur the comparison of the clocks.
            grpc.channel_ready_future(channel).result(timeout=timeout_s)
            asked = time.time()
            call = channel.unary_stream(f"/{SERVICE}/{FETCH}")(request, timeout=timeout_s)
            frame = framing.parse(next(iter(call)))
            trailing = dict(call.trailing_metadata() or ())
            answered = time.time()
    except (grpc.RpcError, grpc.FutureTimeoutError, StopIteration) as error:
        raise LinkDown(f"server must answer within {timeout_s:g} s, got no answer") from error
    if frame.WhichOneof("body") != "refusal":
        raise LinkDown("server must refuse a job that nobody has, got another answer")
    said = frame.refusal
    words = said.words[:_MOST_WORDS] if said.reason in _TURNED_AWAY else ""
    took_s = answered - asked
    return Admission(words, _ahead(trailing.get(TIME_KEY), asked + took_s / 2), took_s / 2)


def _ahead(told: str | bytes | None, middle: float) -> float | None:
    try:
        ahead = float(told) - middle if told is not None else math.nan
    except ValueError:
        return None
    return ahead if math.isfinite(ahead) else None
