"""``doctor``'s look at a server's identity: its keys, its certificates, who signs its jobs.

Not covered: what sites see of it (server/portcheck.py).
"""

import datetime as dt
from collections.abc import Iterator
from pathlib import Path

from common import permissions, pki, validity
from common.address import split_address
from common.certificates import read_certificate
from common.diagnosis import Finding, fault, ok, unchecked, warning
from common.errors import InvalidInput, VeiltuneError
from common.files import read_file
from server.authority import SOON_DAYS
from server.config import CONFIG_FILE, ServerConfig
from server.home import command_of

KEYS, ROOT_KEY, CERTIFICATES = "keys", "root key", "certificates"
CHAIN, HOST, OPERATOR = "certificate chain", "host name", "operator"
_RESTORE = "put it back from a backup: a new one means a new federation"


def keys(home: Path) -> Iterator[Finding]:
    """The keys that the server needs: there, this user's alone, of their kind.

    Raises:
        InvalidInput: one is no key of its kind.
    """
    folder, wrong = home / "pki", list[Finding]()
    for name in ("server.key", "intermediate.key", "operator.key"):
        found = permissions.key_fault(KEYS, folder / name, _RESTORE)
        wrong += [] if found is None else [found]
    yield from wrong
    if not wrong:
        for name in ("server.key", "intermediate.key"):
            pki.read_key(folder / name)
        pki.load_operator_key(folder / "operator.key")
        yield ok(KEYS, "server, intermediate and operator: for this user alone")


def root_key(home: Path) -> Iterator[Finding]:
    """The root's key, which nothing here needs."""
    path = home / "pki" / "root.key"
    if path.exists():
        words = "pki/root.key lies on this machine, and whoever takes it can name any site"
        yield warning(ROOT_KEY, words, f"move {path} to a medium that is kept elsewhere")
    else:
        yield ok(ROOT_KEY, "kept elsewhere")


def certificates(home: Path, config: ServerConfig | None) -> Iterator[Finding]:
    """Server, intermediate and root: in their time, one under the other, for the right host.

    Raises:
        InvalidInput: one is missing or no certificate.
    """
    folder = home / "pki"
    pem, root_pem = read_certificate(folder / "server.pem"), read_certificate(folder / "root.pem")
    (leaf, *above), (root, *_) = pki.load_certificates(pem), pki.load_certificates(root_pem)
    issuing = pki.load_certificates(read_certificate(folder / "intermediate.pem"))[0]
    named = {"the server's": leaf, "the intermediate": issuing, "the root": root}
    command = command_of(home)
    renew = {
        "the server's": "a running server renews its own: see its log",
        "the intermediate": f"{command} rotate intermediate --sign-with KEY (the root's)",
        "the root": f"{command} rotate begin --sign-with KEY (the root's)",
    }
    yield from validity.in_time(CERTIFICATES, named, renew, soon_days=SOON_DAYS)
    moment = max(one.not_valid_before_utc for one in (leaf, *above, root))
    hosts = pki.hosts_of(leaf) or ("localhost",)
    try:
        pki.check_server_chain(pem, root_pem, hosts[0], now=moment)
    except InvalidInput as error:
        yield fault(CHAIN, str(error), "put the files of pki/ back from one backup")
        return
    yield ok(CHAIN, f"leads to the root, sha256 {pki.fingerprint(root)}")
    yield _pair(folder, pem)
    if config is None:
        words = f"{CONFIG_FILE} does not say by which address sites come"
        yield unchecked(HOST, words, f"correct {CONFIG_FILE} first")
    else:
        yield _host(pem, root_pem, split_address(config.address)[0], moment)


def operator(home: Path) -> Iterator[Finding]:
    """Whether the public key that sites allow is that of the key which signs.

    Raises:
        InvalidInput: the file is missing.
    """
    said = read_file(home / "pki" / "operator.pub", max_bytes=1024).decode("ascii", "replace")
    try:
        key = pki.load_operator_key(home / "pki" / "operator.key")
    except VeiltuneError:
        yield unchecked(OPERATOR, "the operator's key cannot be read", "mend the keys first")
        return
    own = key.public_key().public_bytes_raw().hex()
    if said.strip() != own:
        words = "pki/operator.pub is not the public half of pki/operator.key"
        yield fault(OPERATOR, words, "put both back from one backup: sites refuse other signatures")
    else:
        yield ok(OPERATOR, f"signs as {own}")


def _pair(folder: Path, pem: bytes) -> Finding:
    name = "key and certificate"
    try:
        key = pki.load_key(pki.read_key(folder / "server.key"))
    except VeiltuneError:
        return unchecked(name, "the server's key cannot be read", "mend the keys first")
    if pki.leaf_key(pem) != key.public_key():
        words = "pki/server.pem is for another key than pki/server.key"
        return fault(name, words, "put both back from one backup")
    return ok(name, "belong together")


def _host(pem: bytes, root_pem: bytes, host: str, moment: dt.datetime) -> Finding:
    try:
        pki.check_server_chain(pem, root_pem, host, now=moment)
    except InvalidInput as error:
        known = ", ".join(pki.hosts_of(pem))
        advice = f"write an address of {known} into server.toml, and enrol sites by it"
        return fault(HOST, f"{error}: no site will trust it", advice)
    return ok(HOST, f"the certificate is for {host}, by which sites come")
