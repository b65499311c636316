"""What an operator hands to a site: its certificate, the root, where the server is, who signs jobs.

Nothing in a bundle is secret. Everything in it decides whom the site will trust, so it must come
from the operator; fingerprints are there to be compared by another way than the one it came by.

Not covered: authenticity of the file itself.
"""

import json
from pathlib import Path
from typing import Annotated, Literal

from pydantic import StringConstraints

from common.address import PublicAddress
from common.config import Name, Section, parse
from common.errors import InvalidInput
from common.files import read_file

MAX_BUNDLE_BYTES = 64 * 1024

OperatorKey = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}\z")]
Pem = Annotated[str, StringConstraints(pattern=r"^[\x20-\x7e\r\n]+\z")]


class Bundle(Section):
    """A site's certificate chain and the trust that comes with it."""

    veiltune_bundle: Literal[1] = 1
    site: Name
    server: PublicAddress
    operator: OperatorKey
    certificate: Pem  # leaf, then intermediate
    root: Pem  # while one root follows another both, the newest first
    handover: Pem | None = None  # signed by the root before, for a site that trusts that alone

    def to_bytes(self) -> bytes:
        """JSON with a line for each key."""
        return (
            json.dumps(self.model_dump(mode="json", exclude_none=True), indent=2) + "\n"
        ).encode()


def read_bundle(path: Path) -> Bundle:
    """Read what ``Bundle.to_bytes`` wrote.

    Raises:
        InvalidInput: unreadable, too large, or not a bundle.
    """
    return parse_bundle(read_file(path, max_bytes=MAX_BUNDLE_BYTES), path.name)


def parse_bundle(data: bytes, name: str) -> Bundle:
    """Parse what ``Bundle.to_bytes`` wrote; ``name`` says where it came from.

    Raises:
        InvalidInput: not a bundle.
    """
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"{name} must be a bundle in JSON, got something else") from error
    if not isinstance(content, dict):
        raise InvalidInput(f"{name} must be a bundle (a JSON object), got another value")
    return parse(Bundle, content, name)
