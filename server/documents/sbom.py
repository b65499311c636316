"""The software bill of materials: what is installed here, as CycloneDX 1.6 JSON.

It names Veiltune and everything that its distribution requires, directly or through others, with
the versions that are installed. The serial number follows from the content, and the time is the
evidence's, so that the same software gives the same bytes.

Not covered: what sites have installed (each keeps its own); operating systems; hashes of files;
extras that nobody asked for.
"""

import hashlib
import re
from collections.abc import Iterator
from datetime import datetime
from importlib.metadata import Distribution, PackageNotFoundError, distribution
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
    components = {name: _component(found, name) for name, (found, _) in graph.items()}
    bom = Bom(components=[c for name, c in components.items() if name != DISTRIBUTION])
    bom.metadata.timestamp = datetime.fromisoformat(made_at)
    bom.metadata.component = components[DISTRIBUTION]
    for name, (_, needs) in graph.items():
        bom.register_dependency(components[name], [components[n] for n in sorted(needs)])
    pins = "\n".join(f"{name}=={found.version}" for name, (found, _) in sorted(graph.items()))
    bom.serial_number = UUID(bytes=hashlib.sha256(f"{pins}\n{made_at}".encode()).digest()[:16])
    return (JsonV1Dot6(bom).output_as_string(indent=2) + "\n").encode()


def _graph(root: str) -> dict[str, tuple[Distribution, set[str]]]:
    """Each distribution that is installed and needed, with the names of those that it needs."""
    found: dict[str, tuple[Distribution, set[str]]] = {}
    waiting = [(root, distribution(root))]
    while waiting:
        name, one = waiting.pop()
        needs = dict(_needed(one))
        found[name] = (one, set(needs))
        waiting += [(n, d) for n, d in needs.items() if n not in found]
    return found


def _needed(one: Distribution) -> Iterator[tuple[str, Distribution]]:
    """What is installed of what ``one`` requires here, extras aside."""
    for text in one.requires or ():
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            yield _normal(requirement.name), distribution(requirement.name)
        except PackageNotFoundError:
            continue


def _component(found: Distribution, name: str) -> Component:
    is_ours = name == DISTRIBUTION
    licence = _licence(found)
    return Component(
        type=ComponentType.APPLICATION if is_ours else ComponentType.LIBRARY,
        name=name,
        version=found.version,
        bom_ref=f"{name}@{found.version}",
        purl=PackageURL("pypi", None, name, found.version),
        licenses=[DisjunctiveLicense(name=licence)] if licence else [],
    )


def _licence(found: Distribution) -> str:
    """What the package says of its licence, where that is a name and not a text."""
    for key in ("License-Expression", "License"):
        said = next(iter(found.metadata.get_all(key) or ()), "")
        if said and len(said) <= _LONGEST_LICENCE and "\n" not in said:
            return str(said)
    return ""


def _normal(name: str) -> str:
    """As registries compare names: PEP 503."""
    return re.sub(r"[-_.]+", "-", name).lower()
