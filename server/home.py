"""Where a server's home lies, and how ``fl-server`` is called for it.

Not covered: what is in it (server/enrolment.py makes it).
"""

import shlex
from pathlib import Path

DEFAULT_HOME = Path("~/.veiltune/server")


def default_home() -> Path:
    """``~/.veiltune/server``."""
    return DEFAULT_HOME.expanduser()


def command_of(home: Path) -> str:
    """How a person calls ``fl-server`` for ``home``, from any folder."""
    if home.resolve() == default_home().resolve():
        return "fl-server"
    return f"fl-server --home {shlex.quote(str(home.absolute()))}"
