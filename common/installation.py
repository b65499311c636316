"""The installed program: are its files those that were installed, its libraries those it was for.

An installer writes a hash of every file into RECORD
(https://packaging.python.org/en/latest/specifications/recording-installed-packages/); they are
computed again here. An editable install has no such hashes, and its line says so.

Not covered: who changes RECORD too; compiled ``.pyc`` files; the files of other libraries; what
libraries themselves depend on.
"""

import base64
import hashlib
import json
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from urllib.parse import unquote, urlsplit

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import SpecifierSet

import common
from common.code import code_sha256
from common.diagnosis import Check, Finding, fault, ok, unchecked, warning

DISTRIBUTION = "veiltune"
PACKAGES = ("client", "common", "server", "simulations")

_AGAIN = f"install it anew (pip install --force-reinstall --no-deps {DISTRIBUTION})"
_SHOWN = 3


def checks() -> tuple[Check, ...]:
    """Files, owners of our names, libraries."""
    advice = f"install {DISTRIBUTION} with pip, in an environment of its own"
    return (
        Check("program files", files, advice),
        Check("package names", owners, advice),
        Check("libraries", libraries, advice),
    )


def files() -> Iterator[Finding]:
    """Compare the installed files with RECORD, and see that they are the ones that run."""
    name, found = "program files", metadata.distribution(DISTRIBUTION)
    running = Path(common.__file__).resolve().parents[1]
    source = _editable_source(found)
    root = source or Path(str(found.locate_file(""))).resolve()
    if running != root:
        told = warning if source else fault
        advice = "start it without PYTHONPATH, from a folder that holds no copy of it"
        yield told(name, f"what runs is in {running}, while {root} is installed", advice)
        return
    if source is not None:
        why = f"an editable install of {source}: no hash says how its files were when installed"
        advice = f"install a wheel to have them checked (code sha256 now {code_sha256()[:16]})"
        yield unchecked(name, why, advice)
        return
    yield _against_record(found, root)


def owners() -> Iterator[Finding]:
    """See that no other distribution brings packages of our names."""
    owned, name = metadata.packages_distributions(), "package names"
    found: dict[str, list[str | None]] = {
        package: [*owned.get(package, ())] for package in PACKAGES
    }
    others = {
        f"{package}/ of {owner or 'one without a name'}"
        for package, owners in found.items()
        for owner in owners
        if owner is None or owner.lower() != DISTRIBUTION  # broken metadata has no name
    }
    if others:
        advice = "uninstall that distribution, or install in an environment of its own"
        yield fault(name, f"another distribution has {', '.join(sorted(others))}", advice)
    else:
        yield ok(name, f"{', '.join(PACKAGES)} belong to {DISTRIBUTION} alone")


def libraries() -> Iterator[Finding]:
    """Compare the installed versions of what this program requires with the ranges it names."""
    asked = metadata.requires(DISTRIBUTION) or []
    required = [one for one in map(_requirement, asked) if one is not None]
    wrong = [words for one in required if (words := _misfit(one))]
    if not _python_fits():
        wrong.append(f"Python {sys.version.split()[0]}")
    if wrong:
        advice = "install the ranges that it was tested with (pip install veiltune)"
        yield fault("libraries", _listed(wrong, len(wrong)), advice)
    elif not required:
        advice = "install it with pip"
        yield unchecked("libraries", "what is installed names no requirements", advice)
    else:
        shown = ", ".join(f"{n} {metadata.version(n)}" for n in ("torch", "flwr", "cryptography"))
        yield ok("libraries", f"{len(required)} within their ranges, among them {shown}")


def _editable_source(found: metadata.Distribution) -> Path | None:
    """The folder that an editable install runs from (PEP 610)."""
    text = found.read_text("direct_url.json")
    told = json.loads(text) if text else {}
    if not isinstance(told, dict) or not told.get("dir_info", {}).get("editable"):
        return None
    return Path(unquote(urlsplit(str(told.get("url", ""))).path)).resolve()


def _against_record(found: metadata.Distribution, root: Path) -> Finding:
    recorded = {str(file): file for file in found.files or () if file.hash is not None}
    if not any(name.startswith("common/") for name in recorded):
        return unchecked("program files", "what is installed has no hashes (RECORD)", _AGAIN)
    wrong = [f"{name} {why}" for name, file in recorded.items() if (why := _altered(file))]
    wrong += [f"{name} was added" for name in _sources(root) if name not in recorded]
    if wrong:
        return fault("program files", _listed(wrong, len(wrong)), _AGAIN)
    version = f"{DISTRIBUTION} {found.version}"
    return ok("program files", f"{version}: {len(recorded)} files as they were installed")


def _altered(file: metadata.PackagePath) -> str:
    path = Path(str(file.locate()))
    if file.hash is None or file.hash.mode not in hashlib.algorithms_guaranteed:
        return "has a hash of an unknown kind"
    try:
        digest = hashlib.new(file.hash.mode, path.read_bytes()).digest()
    except OSError as error:
        return "is missing" if isinstance(error, FileNotFoundError) else "cannot be read"
    written = base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
    return "" if written == file.hash.value else "was changed"


def _sources(root: Path) -> Iterator[str]:
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            yield path.relative_to(root).as_posix()


def _requirement(text: str) -> Requirement | None:
    """What a plain install needs; ``None`` for an extra's, or one that cannot be read."""
    try:
        found = Requirement(text)
    except InvalidRequirement:
        return None
    return found if found.marker is None or found.marker.evaluate({"extra": ""}) else None


def _misfit(required: Requirement) -> str:
    try:
        version = metadata.version(required.name)
    except metadata.PackageNotFoundError:
        return f"{required.name} is missing (needs {required.specifier})"
    if required.specifier.contains(version, prereleases=True):
        return ""
    return f"{required.name} {version} (needs {required.specifier})"


def _python_fits() -> bool:
    asked = metadata.metadata(DISTRIBUTION).get_all("Requires-Python") or [""]
    return SpecifierSet(asked[0]).contains(sys.version.split()[0], prereleases=True)


def _listed(words: list[str], count: int) -> str:
    more = f", and {count - _SHOWN} more" if count > _SHOWN else ""
    return ", ".join(words[:_SHOWN]) + more
