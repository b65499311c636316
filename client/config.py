"""A site's own file, ``site.toml``: where the server is, where the data is, what is allowed."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from common.config import Name, Section, check_name, parse, read_toml
from common.data.records import ColumnMap
from common.errors import InvalidInput

DEFAULT_HOME = Path("~/.veiltune/sites")

Address = Annotated[str, StringConstraints(pattern=r"^[^\s/]{1,255}:[0-9]{1,5}\z")]
PublicKey = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}\z")]


class CertificatesSection(Section):
    """Files of the link's identity, relative to the home."""

    root: str = "pki/root.pem"
    certificate: str = "pki/site.pem"
    key: str = "pki/site.key"


class PolicySection(Section):
    """What this site's owner allows. Read before any job opens any data."""

    allowed_signers: tuple[PublicKey, ...] = ()
    max_epsilon: float = Field(default=8.0, gt=0)
    max_delta: float = Field(default=1e-5, gt=0, lt=1)
    allow_no_privacy: bool = False


class DataSetSection(Section):
    """A data set: its file, relative to the home, and which column is which."""

    path: str
    text: str = "text"
    label: str = "label"
    unit: str = ""
    group: str = ""

    @property
    def columns(self) -> ColumnMap:
        """The mapping as the readers take it."""
        return ColumnMap(text=self.text, label=self.label, unit=self.unit, group=self.group)


class RuntimeSection(Section):
    """Knobs that cannot change the guarantee."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int = Field(default=0, ge=0, le=1024)
    physical_batch: int = Field(default=8, ge=1, le=4096)


class SiteConfig(Section):
    """The whole of ``site.toml``."""

    site: Name
    server: Address = "127.0.0.1:8443"
    certificates: CertificatesSection = CertificatesSection()
    policy: PolicySection = PolicySection()
    data: dict[Name, DataSetSection] = Field(default_factory=dict)
    models: dict[str, str] = Field(default_factory=dict)
    runtime: RuntimeSection = RuntimeSection()


@dataclass(frozen=True)
class SiteHome:
    """A site's folder and what its owner wrote there."""

    folder: Path
    config: SiteConfig

    @property
    def site(self) -> str:
        """The site's name."""
        return self.config.site

    @property
    def account_path(self) -> Path:
        """The durable account of releases."""
        return self.folder / "account.db"

    def path(self, relative: str) -> Path:
        """A path of ``site.toml``, taken from the home."""
        return self.folder / Path(relative).expanduser()

    @cached_property
    def models(self) -> dict[str, Path]:
        """This machine's own places for some bases."""
        return {base: self.path(folder) for base, folder in self.config.models.items()}

    def data_set(self, name: str) -> DataSetSection:
        """The data set that a job asks for.

        Raises:
            InvalidInput: the site has none of that name.
        """
        if name not in self.config.data:
            known = ", ".join(self.config.data) or "none"
            raise InvalidInput(f"data set must be one that site.toml maps ({known}), got {name!r}")
        return self.config.data[name]


def default_home(site: str) -> Path:
    """``~/.veiltune/sites/<SITE>``.

    Raises:
        InvalidInput: ``site`` is no name.
    """
    return DEFAULT_HOME.expanduser() / check_name("site", site)


def load_home(folder: Path, site: str) -> SiteHome:
    """Read ``site.toml`` in ``folder`` and check that it is this site's.

    Raises:
        InvalidInput: no such file, any fault in it, or another site's.
    """
    check_name("site", site)
    path = folder / "site.toml"
    if not path.is_file():
        raise InvalidInput(
            f"site {site} must be set up, got no {path} "
            f"(fl-client --site {site} init, then install)"
        )
    config = parse(SiteConfig, read_toml(path), "site.toml")
    if config.site != site:
        raise InvalidInput(f"site.toml must be that of site {site}, got site {config.site}")
    return SiteHome(folder, config)
