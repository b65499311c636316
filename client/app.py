"""The site's Flower ClientApp: a thin translation between Flower's messages and ``Site``.

The same app runs over the link, in a simulation and under Flower's own runtime.
"""

import os
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import structlog
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from client.config import load_home
from client.site import Site
from common import messages
from common.adapter import Vector
from common.errors import InvalidInput, JobWaits, LedgerBroken, Refusal, VeiltuneError
from common.phases import ended, read_confirm
from common.privacy.ledger import WITNESSED

HOMES = "VEILTUNE_HOMES"
Act = Callable[[Site, messages.Order, Vector], RecordDict]

log = structlog.get_logger(__name__)


def make_client_app(site_of: Callable[[Context], Site]) -> ClientApp:
    """A ClientApp whose site is found by ``site_of``."""
    app = ClientApp()

    def continued_site(message: Message, context: Context) -> Site:
        """The site, unless its ledger is not the one that the server saw last."""
        site = site_of(context)
        site.outbox.require_witnessed(messages.read_head(message.content, WITNESSED))
        return site

    @app.query("offer")
    def offer(message: Message, context: Context) -> Message:
        def accept() -> RecordDict:
            site = continued_site(message, context)
            site.consider(messages.read_offer(message.content))
            return messages.verdict(accepted=True, head=site.outbox.head())

        return Message(_answered(accept), reply_to=message)

    def ordered(message: Message, context: Context, act: Act) -> Message:
        said = _answered(lambda: _ordered(continued_site(message, context), message.content, act))
        return Message(said, reply_to=message)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return ordered(message, context, Site.answer)

    @app.query("metrics")
    def metrics(message: Message, context: Context) -> Message:
        return ordered(message, context, Site.measure)

    @app.train("release")
    def release(message: Message, context: Context) -> Message:
        def hand_out() -> RecordDict:
            site = continued_site(message, context)
            return site.release(read_confirm(message.content))

        return Message(_answered(hand_out), reply_to=message)

    _ask(app, site_of)
    return app


def _ask(app: ClientApp, site_of: Callable[[Context], Site]) -> None:
    """Who a site is, and that a job has ended: asked of any site, whatever its ledger."""

    @app.query("close")
    def close(message: Message, context: Context) -> Message:
        def end() -> RecordDict:
            site = site_of(context)
            ending = site.end(messages.read_close(message.content))
            return ended(messages.verdict(accepted=True, head=site.outbox.head()), ending)

        return Message(_answered(end), reply_to=message)

    @app.query("site")
    def name(message: Message, context: Context) -> Message:
        return Message(messages.site_name(site_of(context).home.site), reply_to=message)


def _ordered(site: Site, content: RecordDict, act: Act) -> RecordDict:
    """What ``site`` answers to an order, whatever it is for."""
    order = messages.read_order(content)
    table = site.consider(order.signed).adapter.table
    return act(site, order, messages.read_global(content, table))


def _answered(act: Callable[[], RecordDict]) -> RecordDict:
    """What ``act`` answers, or its refusal in words that hold no record."""
    try:
        return act()
    except JobWaits:
        # Said once in this site's log, when the job came; the server asks again and again.
        return messages.verdict(accepted=False, reason=messages.WAITING)
    except LedgerBroken as error:
        log.error("ledger broken: this site trains no more", reason=str(error))
        return messages.verdict(accepted=False, reason=messages.NO_LEDGER)
    except VeiltuneError as error:
        log.error("refused", reason=str(error))
        # A refusal follows from public facts; trouble with this site's disk is its own affair.
        reason = str(error) if isinstance(error, Refusal) else messages.IN_TROUBLE
        return messages.verdict(accepted=False, reason=reason)


@lru_cache(maxsize=64)
def open_site(home: str, site: str) -> Site:
    """The one ``Site`` of a home in this process."""
    return Site(load_home(Path(home), site))


def site_of_node(context: Context) -> Site:
    """The site of a node of Flower's own runtime.

    ``node_config``, which a SuperNode is started with, names it by ``home`` and ``site``. A node of
    Flower's simulation has a ``partition-id`` instead: the place of its site among the homes under
    ``VEILTUNE_HOMES``, by name. Both are the machine's own; nothing that a server sends counts.

    Raises:
        InvalidInput: neither says which.
    """
    config = context.node_config
    if "home" in config and "site" in config:
        return open_site(str(config["home"]), str(config["site"]))
    homes = (
        sorted(Path(os.environ.get(HOMES, "")).glob("*/site.toml")) if HOMES in os.environ else []
    )
    place = int(config.get("partition-id", -1))
    if not 0 <= place < len(homes):
        raise InvalidInput(
            f"node_config must hold home and site, or a partition-id below the {len(homes)} homes "
            f"under {HOMES}, got {sorted(config)}"
        )
    folder = homes[place].parent
    return open_site(str(folder), folder.name)


app = make_client_app(site_of_node)
