"""The software bill of materials: what is installed here, as CycloneDX 1.6 JSON.

It names Veiltune and everything that its distribution requires, directly or through others, with
the versions that are installed. The serial number follows from the content, and the time is the
evidence's, so that the same software gives the same bytes.

Not covered: what sites have installed (each keeps its own); operating systems; hashes of files;
extras that nobody asked for.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import (
    Distribution,
    PackageMetadata,
    PackageNotFoundError,
    distribution,
)
from uuid import UUID

from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.license import DisjunctiveLicense
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL
from packaging.requirements import Requirement

DISTRIBUTION = "veiltune"
_LONGEST_LICENCE = 100  # characters; some packages put the whole text there


def bill_of_materials(made_at: str) -> bytes:
    """The file's bytes; ``made_at`` as 2026-11-28T01:00:00Z.

    Raises:
        PackageNotFoundError: Veiltune is not installed.
    """
    graph = _graph(DISTRIBUTION)
    components = {name: _component(package) for name, package in graph.items()}
    bom = Bom(components=[c for name, c in components.items() if name != DISTRIBUTION])
    bom.metadata.timestamp = datetime.fromisoformat(made_at)
    bom.metadata.component = components[DISTRIBUTION]
    for name, package in graph.items():
        bom.register_dependency(components[name], [components[n] for n in sorted(package.needs)])
    pins = "\n".join(f"{name}=={package.version}" for name, package in sorted(graph.items()))
    bom.serial_number = UUID(bytes=hashlib.sha256(f"{pins}\n{made_at}".encode()).digest()[:16])
    return (JsonV1Dot6(bom).output_as_string(indent=2) + "\n").encode()


@dataclass(frozen=True, slots=True)
class _Package:
    """What an installed distribution says of itself, read once: each look parses all of it."""

    name: str
    version: str
    licence: str
    needs: frozenset[str]  # what is installed of what it requires here, extras aside


def _graph(root: str) -> dict[str, _Package]:
    """Each distribution that is installed and needed, by its name."""
    known = {root: distribution(root)}
    found = dict[str, _Package]()
    while waiting := known.keys() - found.keys():
        for name in sorted(waiting):
            about = known[name].metadata
            needs = frozenset(_needed(known[name].requires or (), known))
            found[name] = _Package(name, about["Version"], _licence(about), needs)
    return found


def _needed(required: Iterable[str], known: dict[str, Distribution]) -> Iterator[str]:
    """The names of what is installed, which is ``known`` from then on."""
    for text in required:
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        name = _normal(requirement.name)
        try:
            known[name] = known.get(name) or distribution(requirement.name)
        except PackageNotFoundError:
            continue
        yield name


def _component(package: _Package) -> Component:
    name, version = package.name, package.version
    is_ours = name == DISTRIBUTION
    return Component(
        type=ComponentType.APPLICATION if is_ours else ComponentType.LIBRARY,
        name=name,
        version=version,
        bom_ref=f"{name}@{version}",
        purl=PackageURL("pypi", None, name, version),
        licenses=[DisjunctiveLicense(name=package.licence)] if package.licence else [],
    )


def _licence(about: PackageMetadata) -> str:
    """What the package says of its licence, where that is a name and not a text."""
    for key in ("License-Expression", "License"):
        said = next(iter(about.get_all(key) or ()), "")
        if said and len(said) <= _LONGEST_LICENCE and "\n" not in said:
            return str(said)
    return ""


def _normal(name: str) -> str:
    """As registries compare names: PEP 503."""
    return re.sub(r"[-_.]+", "-", name).lower()
