"""``doctor``'s look at base models: those that ``site.toml`` places, that jobs pin, that install.

Not covered: bases in the hub's cache that no job here names; whether a base can be trained.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from client import approval
from client.account import has_run
from client.config import SiteHome
from client.outbox import Outbox
from common.diagnosis import Finding, fault, ok, warning
from common.errors import InvalidInput, VeiltuneError
from common.job import Job, parse_signed_job
from common.model import BUILTINS, folder_hash, locate
from common.sqlite_file import is_being_written

NAME = "base model"


@dataclass(frozen=True, slots=True)
class Base:
    """A base that is here: its name, its folder, its content hash."""

    name: str
    folder: Path
    sha256: str

    @property
    def weights_bytes(self) -> int:
        """Of its weights' files."""
        return sum(path.stat().st_size for path in self.folder.glob("*.safetensors"))


def present(home: SiteHome) -> tuple[list[Base], list[Finding]]:
    """The bases of this machine, hashed, and what is wrong with those that should be."""
    found, wrong = [], []
    for name in (*home.models, *BUILTINS):
        if name in home.models or _is_installed(name):
            try:
                folder = locate(name, local=home.models, download=False)
                found.append(Base(name, folder, folder_hash(folder)))
            except (InvalidInput, OSError) as error:
                wrong.append(_broken(home, name, error))
    return found, wrong


def findings(home: SiteHome, bases: list[Base], wrong: list[Finding]) -> Iterator[Finding]:
    """A line for each base, each allowed hash that no base has, each job whose base is another."""
    yield from wrong
    allowed, hashes = home.config.policy.allowed_bases, {base.sha256 for base in bases}
    for base in bases:
        shown = f"{base.name}, sha256 {base.sha256[:16]}"
        if allowed and base.sha256 not in allowed and base.name in home.models:
            words = f"{shown} is not among policy.allowed_bases: its files changed, or never were"
            yield warning(NAME, words, "put its files back, or allow that hash in site.toml")
        else:
            yield ok(NAME, shown)
    jobs = list(_jobs(home))
    pinned = {job.model.sha256: job for job in jobs}
    for sha256 in allowed:
        if sha256 not in hashes and sha256 not in pinned:
            advice = "place it under [models] in site.toml before a job asks for it"
            yield warning(NAME, f"no base here has the allowed sha256 {sha256[:16]}", advice)
    for job in pinned.values():
        yield from _of_job(home, job)
    if not (wrong or bases or allowed or jobs):
        yield ok(NAME, "none is placed, allowed or asked for yet")


def _of_job(home: SiteHome, job: Job) -> Iterator[Finding]:
    model, name = job.model, job.job.name
    try:
        folder = locate(model.base, model.revision, home.models, download=False)
    except InvalidInput as error:
        advice = f"place {model.base} under [models] in site.toml"
        yield fault(NAME, f"job {name} needs a base that is not here: {error}", advice)
        return
    if (found := folder_hash(folder)) != model.sha256:
        words = f"{model.base} has sha256 {found[:16]}, and job {name} pins {model.sha256[:16]}"
        advice = f"put the files of {folder} back as they were: the site refuses the job"
        yield fault(NAME, f"{words}: its files changed, or it is another", advice)
    else:
        yield ok(NAME, f"{model.base} is the one that job {name} pins")


def _jobs(home: SiteHome) -> Iterator[Job]:
    """The jobs that run or wait here; what is wrong with the ledger has a line of its own."""
    manifests = [offer.manifest for offer in approval.offers(home, ())]
    try:
        if has_run(home) and not is_being_written(home.account_path):
            rows = Outbox.of(home, is_reader=True).jobs()
            manifests += [row.manifest for row in rows if row.state == "running"]
        yield from (parse_signed_job(manifest).job for manifest in manifests)
    except VeiltuneError:
        return


def _broken(home: SiteHome, name: str, error: Exception) -> Finding:
    if name in home.models:
        return fault(NAME, f"{name}: {error}", "correct its folder under [models] in site.toml")
    package = BUILTINS[name].distribution
    return fault(NAME, f"{name}: {error}", f"pip install --force-reinstall {package}")


def _is_installed(name: str) -> bool:
    from importlib import metadata

    try:
        metadata.distribution(BUILTINS[name].distribution)
    except metadata.PackageNotFoundError:
        return False
    return True
