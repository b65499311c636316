"""The server as a witness: it keeps the longest ledger head of every site and sends it back.

A site whose ledger is an older copy, or went on from one, finds that out by it.
"""

import structlog
from flwr.app import Message

from common import messages
from common.errors import UpdateRejected
from server.checkpoint import Checkpoints

log = structlog.get_logger(__name__)


def witness(checkpoints: Checkpoints, site: str, reply: Message) -> None:
    """Remember the ledger head in a reply; one that contradicts an earlier one is named."""
    try:
        head = messages.read_head(reply.content, messages.HEAD) if reply.has_content() else None
    except UpdateRejected as error:
        log.warning("head not taken", site=site, reason=str(error))
        return
    if head is None:
        return
    if not head.is_signed():
        log.warning("head not taken", site=site, reason="its signature is not its key's")
        return
    found = checkpoints.witness(site, head)
    if found == "forked":
        log.error("ledger forked", site=site, size=head.size, remedy="two copies are used")
    elif found == "foreign":
        log.error("head not taken", site=site, reason="its key is not the site's certificate's")
    elif found == "shorter":
        log.warning("older ledger head", site=site, size=head.size)
