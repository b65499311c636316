"""A site's own file, ``site.toml``: where the server is, where the data is, what is allowed."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, StringConstraints, ValidationInfo, field_validator

from common.config import (
    RECORD,
    Flag,
    Name,
    Number,
    Section,
    Sha256,
    TaskName,
    Whole,
    check_name,
    parse,
    read_toml,
)
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
    """What this site's owner allows. Read before any job opens any data.

    ``max_epsilon`` and ``max_delta`` are over the life of the data; a limit that is not given for a
    job is the one over the life. An empty list of bases or tasks allows any.
    """

    allowed_signers: tuple[PublicKey, ...] = ()
    allowed_bases: tuple[Sha256, ...] = ()
    allowed_tasks: tuple[TaskName, ...] = ()
    allowed_releases: tuple[Literal["update", "metrics"], ...] = ("update",)
    allow_no_privacy: Flag = False
    approval: Literal["automatic", "person"] = "automatic"
    max_epsilon: Number = Field(default=8.0, gt=0, le=1000)
    max_delta: Number = Field(default=1e-5, gt=0, lt=1)
    max_job_epsilon: Number | None = Field(default=None, gt=0, le=1000)
    max_job_delta: Number | None = Field(default=None, gt=0, lt=1)
    lifetime: Literal["rdp-filter", "pld-schedule"] = "rdp-filter"
    schedule: tuple[Sha256, ...] = Field(default=(), max_length=1000, validate_default=True)
    min_population: Whole = Field(default=1, ge=1)
    min_noise_multiplier: Number = Field(default=0.0, ge=0)
    required_unit: Name | None = None
    max_memory_gb: Number | None = Field(default=None, gt=0)
    max_gpu_memory_gb: Number | None = Field(default=None, gt=0)
    max_minutes: Number | None = Field(default=None, gt=0)

    # Validators of fields, not of the whole: so that one wrong key hides no other's fault.
    @field_validator("max_job_epsilon", "max_job_delta")
    @classmethod
    def _within_the_life(cls, value: float | None, info: ValidationInfo) -> float | None:
        name = str(info.field_name).replace("_job", "")
        limit = info.data.get(name)
        if value is not None and limit is not None and value > limit:
            raise ValueError(
                f"policy.{info.field_name} must be at most policy.{name}, {limit:g}, got {value:g}"
            )
        return value

    @field_validator("schedule")
    @classmethod
    def _belongs_to_its_lifetime(
        cls, value: tuple[str, ...], info: ValidationInfo
    ) -> tuple[str, ...]:
        lifetime = info.data.get("lifetime")
        if lifetime is not None and bool(value) != (lifetime == "pld-schedule"):
            rule = "empty" if value else "a list of jobs' sha256"
            raise ValueError(
                f"policy.schedule must be {rule} with lifetime {lifetime!r}, "
                f"got {len(value)} entries"
            )
        if len(set(value)) != len(value):
            raise ValueError("policy.schedule must be of distinct jobs, got one twice")
        return value

    @property
    def job_epsilon(self) -> float:
        """The most epsilon that one job may promise to spend."""
        return self.max_epsilon if self.max_job_epsilon is None else self.max_job_epsilon

    @property
    def job_delta(self) -> float:
        """The largest delta of one job."""
        return self.max_delta if self.max_job_delta is None else self.max_job_delta


class DataSetSection(Section):
    """A data set: its file, relative to the home, and which column is which.

    ``unit`` is the column whose equal values are one privacy unit, ``unit_name`` what jobs call
    such a unit, if it is not the column's name. With ``words`` and ``tags`` each row is a list of
    words with a tag each, for jobs of token classification, and text and label are not looked for.
    """

    path: str
    text: str = "text"
    label: str = "label"
    unit: str = ""
    unit_name: Name | None = Field(default=None, validate_default=True)
    group: str = ""
    words: str = ""
    tags: str = Field(default="", validate_default=True)

    @field_validator("tags")
    @classmethod
    def _belong_to_words(cls, value: str, info: ValidationInfo) -> str:
        if bool(value) != bool(info.data.get("words")):
            rule = "absent without a words column" if value else "named where words is"
            raise ValueError(f"must be {rule}, got {value!r}")
        return value

    @field_validator("unit_name")
    @classmethod
    def _names_a_column(cls, value: str | None, info: ValidationInfo) -> str | None:
        column = info.data.get("unit")
        if value is not None and not column:
            raise ValueError(f"must be absent without a unit column, got {value!r}")
        # A job that asks for units of that name would get single rows, and promise no more.
        if (value or column) == RECORD:
            raise ValueError(
                f"must be given and not {RECORD!r}, which jobs call a single row, "
                f"got {value!r} for the column {column!r}"
            )
        return value

    @property
    def columns(self) -> ColumnMap:
        """The mapping as the readers take it."""
        names = ("text", "label", "unit", "group", "words", "tags")
        return ColumnMap(**{name: getattr(self, name) for name in names})

    @property
    def tasks(self) -> tuple[TaskName, ...]:
        """The tasks that its columns are mapped for."""
        return ("token-cls",) if self.words else ("seq-cls",)

    @property
    def unit_called(self) -> str:
        """The unit by the name that jobs give it; empty where no column is mapped."""
        return self.unit_name or self.unit


class RuntimeSection(Section):
    """Knobs that cannot change the guarantee.

    ``engine`` computes per-sample gradients: our own single backward pass, or Opacus' hooks;
    ``fused`` lets ours compute LoRA's forward pass in one piece.
    """

    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: Whole = Field(default=0, ge=0, le=1024)
    physical_batch: Whole = Field(default=8, ge=1, le=4096)
    engine: Literal["native", "opacus"] = "native"
    fused: Flag = False

    @field_validator("fused")
    @classmethod
    def _native_alone(cls, value: bool, info: ValidationInfo) -> bool:
        if value and info.data.get("engine") == "opacus":
            raise ValueError("runtime.fused must be false with engine 'opacus', got true")
        return value


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
