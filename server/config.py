"""The server's own settings: ``server.toml`` in its home.

Not covered: certificates and keys, whose place in the home is fixed (server/enrolment.py).
"""

from pathlib import Path

from pydantic import Field, field_validator
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from common.address import ListenAddress, PublicAddress
from common.config import Name, Section, parse, read_toml
from common.errors import InvalidInput

CONFIG_FILE = "server.toml"


class ServerConfig(Section):
    """Where the server listens, how sites reach it, where its state lives.

    ``join_listen`` and ``join_address`` are the same for first contact by a token; by default the
    next port.
    """

    name: Name
    listen: ListenAddress
    address: PublicAddress
    join_listen: ListenAddress | None = None
    join_address: PublicAddress | None = None
    database: str = Field(default="sqlite:///state.db", max_length=2000)

    @field_validator("database")
    @classmethod
    def _is_a_url(cls, value: str) -> str:
        try:
            make_url(value)
        except ArgumentError:
            # The value is left out: it may hold a password.
            raise ValueError("database must be a database URL, got something else") from None
        return value

    @property
    def joins_at(self) -> str:
        """host:port that a token names."""
        return self.join_address or _next_port(self.address, "join_address")

    @property
    def listens_for_joins_at(self) -> str:
        """host:port to listen on while invitations stand."""
        return self.join_listen or _next_port(self.listen, "join_listen")


def _next_port(address: str, key: str) -> str:
    host, port = address.rpartition(":")[::2]
    if not 0 < int(port) < 65535:
        raise InvalidInput(f"{key} must be given in {CONFIG_FILE} beside port {port}, got nothing")
    return f"{host}:{int(port) + 1}"


def load_server_config(home: Path) -> ServerConfig:
    """Read ``server.toml``; a relative SQLite file is taken from the home.

    Raises:
        InvalidInput: every fault of the file, each by its key.
    """
    config = parse(ServerConfig, read_toml(home / CONFIG_FILE), CONFIG_FILE)
    url = make_url(config.database)
    if url.get_backend_name() != "sqlite" or url.database in (None, "", ":memory:"):
        return config
    path = home.resolve() / str(url.database)
    database = url.set(database=str(path)).render_as_string(hide_password=False)
    return config.model_copy(update={"database": database})
