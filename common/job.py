"""The job manifest: everything that a run fixes before any record is read.

A job is data with a closed schema. It travels as the RFC 8785 canonical JSON of these models; its
name is the sha256 of those bytes, and the operator signs them with Ed25519 (RFC 8032). What follows
from it (noise, steps, divisors, weights) is computed on each side and never sent or typed.

Not covered: whether a site agrees (client/policy.py).
"""

import hashlib
from collections.abc import Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, Self, TypeVar

import rfc8785
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)
from pydantic import (
    Field,
    StringConstraints,
    ValidationInfo,
    field_validator,
    model_validator,
)

from common.aggregation import AggregationSection
from common.aggregation import faults as aggregation_faults
from common.config import (
    MAX_CONFIG_BYTES,
    RECORD,
    Name,
    Section,
    Sha256,
    TaskName,
    parse,
    read_toml,
)
from common.data.records import OUTSIDE, ColumnMap
from common.errors import InvalidInput, JobRefused
from common.futile import SIGNED, futile
from common.histograms import MOST_BINS, Histogram, MetricsSection, bins, histograms_of, sensitivity
from common.link.identity import node_id
from common.privacy import accounting
from common.privacy.event import GaussianSteps
from common.strict_json import parse_json

SIGNATURE_DOMAIN = b"veiltune job v1\n"
_SHORTEST_ID = 4  # characters of a sha256
# Of one job at one site: what any accountant answers within seconds.
MOST_JOB_STEPS = 100_000
MOST_JOB_SITES = 3000  # whose charges fit one receipt (common/receipt.py)
MAX_INTEGER = 2**53  # RFC 8785 writes numbers as doubles

MethodName = Literal[
    "fedavg", "ffa", "fedsvd", "rolora", "fedex", "flora", "flexlora", "fedsb", "head"
]
InitName = Literal["uniform", "orthonormal", "svd"]
Label = Annotated[str, StringConstraints(min_length=1, max_length=200)]
ModuleName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.]{1,200}\z")]
Reason = Annotated[
    str, StringConstraints(strip_whitespace=True, min_length=10, max_length=500)
]  # words, not "yes"
Hex64 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}\z")]
Hex128 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{128}\z")]


class JobSection(Section):
    """What the run is called and what it learns."""

    name: Name
    task: TaskName = "seq-cls"
    description: str = Field(default="", max_length=2000)


class ModelSection(Section):
    """The frozen base, pinned by content."""

    base: str = Field(min_length=1, max_length=500)
    revision: str = Field(default="", pattern=r"^([0-9a-f]{40})?\z")
    sha256: Sha256
    max_length: int = Field(default=128, ge=8, le=8192)
    dtype: Literal["float32", "bfloat16"] = "float32"


class AdapterSection(Section):
    """The PEFT adapter: its method (``common/methods.py``) and its start (``common/initial.py``).

    ``ranks`` gives sites a lower rank than the job's, with ``flexlora``.
    """

    method: MethodName = "ffa"
    init: InitName | None = None
    rank: int = Field(default=8, ge=1, le=512)
    ranks: dict[Name, Annotated[int, Field(ge=1, le=512)]] | None = None
    alpha: int = Field(default=16, ge=1, le=2**20)
    targets: tuple[ModuleName, ...] = Field(min_length=1, max_length=64)
    head: tuple[ModuleName, ...] = Field(default=("classifier",), max_length=8)
    seed: int = Field(default=0, ge=0, lt=MAX_INTEGER)
    dropout: float = 0.0
    dora: bool = False

    @property
    def start(self) -> InitName:
        """How A begins; ``uniform`` where the job does not say."""
        return self.init or "uniform"

    @model_validator(mode="before")
    @classmethod
    def _start_of_the_method(cls, data: Any) -> Any:  # noqa: ANN401 -- whatever a file holds
        """With ``fedsb`` A and B stay as they start; where nothing is said, the job then says how.

        Written out, so that the job has one name either way, and means the same to software that
        has no such default.
        """
        if isinstance(data, dict) and data.get("method") == "fedsb" and data.get("init") is None:
            return {**data, "init": "orthonormal"}
        return data

    @model_validator(mode="after")
    def _fits_the_method(self) -> Self:
        faults = []
        if self.method == "fedsb" and self.start == "uniform":
            faults.append(
                "adapter.init must be 'orthonormal' or 'svd' with method 'fedsb' (A and B stay as "
                "they start), got 'uniform'"
            )
        if self.method == "head" and self.start == "svd":
            faults.append(
                "adapter.init must be 'uniform' or 'orthonormal' with method 'head' (A and B are "
                "not used), got 'svd'"
            )
        if self.method == "head" and not self.head:
            faults.append("adapter.head must name a module with method 'head', got none")
        if self.ranks is not None and self.method != "flexlora":
            faults.append(f"adapter.ranks must be absent with method {self.method!r}, got it")
        for site, rank in (self.ranks or {}).items():
            if rank > self.rank:
                faults.append(
                    f"adapter.ranks.{site} must be at most adapter.rank, {self.rank}, got {rank}"
                )
        if faults:
            raise ValueError("; ".join(faults))
        return self

    @field_validator("dropout")
    @classmethod
    def _no_dropout(cls, value: float) -> float:
        if value != 0:
            raise ValueError(
                "adapter.dropout must be 0 (a random mask makes a record's gradient differ from "
                f"the one that was clipped), got {value}"
            )
        return value

    @field_validator("dora")
    @classmethod
    def _no_dora(cls, value: bool) -> bool:
        if value:
            raise ValueError(
                "adapter.dora must be false (DoRA's weight norm mixes all parameters, so Opacus "
                "has no per-sample gradient for it), got true"
            )
        return value


class TrainingSection(Section):
    """Rounds, the local optimiser, the wire, and when a round closes.

    With ``patience`` the job ends once that many rounds together bring nothing better on the public
    hold-out, and its outcome is the best round's adapter.
    """

    rounds: int = Field(ge=1, le=100_000)
    local_steps: int = Field(ge=1, le=100_000)
    optimizer: Literal["sgd", "adamw"] = "sgd"
    learning_rate: float = Field(gt=0, le=1e4)
    momentum: float = Field(default=0.0, ge=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0, le=1)
    proximal_mu: float | None = Field(default=None, ge=0, le=1e4)
    codec: Literal["fp32", "bf16", "int8", "int4"] = "fp32"
    quorum: int = Field(default=1, ge=1)
    deadline_s: float = Field(default=600.0, gt=0, le=7 * 86400)
    max_update_norm: float = Field(default=1e4, gt=0)
    patience: int | None = Field(default=None, ge=1, le=100_000)

    @model_validator(mode="after")
    def _momentum_belongs_to_sgd(self) -> Self:
        if self.momentum and self.optimizer != "sgd":
            raise ValueError(
                f"training.momentum must be 0 with {self.optimizer}, got {self.momentum}"
            )
        return self


class PrivacySection(Section):
    """The knobs that can change the guarantee. ``none`` keeps Poisson sampling and nothing else.

    ``unit`` is ``record``, or what the records of one unit share, such as ``patient_id``: all of
    them together are then clipped as one, and a step sees at most ``unit_cap`` of them.
    """

    mode: Literal["site", "none"] = "site"
    unit: Name = RECORD
    unit_cap: int | None = Field(default=None, ge=1, le=10_000)
    epsilon: float | None = Field(default=None, gt=0, le=1000)
    delta: float | None = Field(default=None, gt=0, lt=1)
    clip_norm: float | None = Field(default=None, ge=1e-9, le=1e6)
    sampling_rate: float = Field(gt=0, le=1)

    @model_validator(mode="after")
    def _cap_belongs_to_units(self) -> Self:
        if (self.unit_cap is None) != (self.unit == RECORD):
            rule = "absent" if self.unit == RECORD else "given"
            raise ValueError(
                f"privacy.unit_cap must be {rule} with unit {self.unit!r} (the most records of a "
                f"unit that a step sees), got {self.unit_cap}"
            )
        return self

    @model_validator(mode="after")
    def _complete(self) -> Self:
        given = {k: getattr(self, k) for k in ("epsilon", "delta", "clip_norm")}
        wrong = [k for k, v in given.items() if (v is None) == (self.mode == "site")]
        if wrong:
            rule = "given" if self.mode == "site" else "absent"
            raise ValueError(
                "; ".join(
                    f"privacy.{k} must be {rule} with mode {self.mode!r}, got {given[k]}"
                    for k in wrong
                )
            )
        return self


def entity_types(labels: Sequence[str]) -> tuple[str, ...]:
    """The kinds of entities that a set of IOB2 tags speaks of, sorted.

    >>> entity_types(("O", "B-Drug", "I-Drug"))
    ('Drug',)

    Raises:
        InvalidInput: the labels are no such set.
    """
    begun = {label[2:] for label in labels if label.startswith("B-")}
    inside = {label[2:] for label in labels if label.startswith("I-")}
    is_whole = len(labels) == 1 + len(begun) + len(inside)
    if not (is_whole and OUTSIDE in labels and begun and inside <= begun and "" not in begun):
        raise InvalidInput(
            "data.labels must be IOB2 tags with task 'token-cls' (O, and B-KIND or B-KIND and "
            f"I-KIND for every kind of entity), got {list(labels[:6])}"
        )
    return tuple(sorted(begun))


class DataSection(Section):
    """Public facts about private data: never counted from it. ``population`` counts units."""

    name: Name
    labels: tuple[Label, ...] = Field(min_length=2, max_length=10_000)
    population: dict[Name, Annotated[int, Field(ge=1, le=10**9)]] = Field(min_length=1)

    @field_validator("labels")
    @classmethod
    def _distinct(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) != len(value):
            twice = sorted({label for label in value if value.count(label) > 1})
            raise ValueError(f"data.labels must be distinct, got {twice[:5]} twice")
        return value


class EvaluationSection(Section):
    """A public hold-out, evaluated at the server: a catalogue name or the operator's own file.

    The columns are those of a file; ``words`` and ``tags`` are for token classification, and by
    default called so. With ``disjoint_because`` the operator declares that no privacy unit of a
    site is in it, and says why: nobody else can tell, since where a private record also is would be
    a release.
    """

    data: str = Field(min_length=1, max_length=500)
    split: Literal["train", "dev", "test"] = "test"
    text: str = "text"
    label: str = "label"
    words: str | None = Field(default=None, min_length=1)
    tags: str | None = Field(default=None, min_length=1)
    records: int = Field(default=1000, ge=1, le=10**9)
    disjoint_because: Reason | None = None


class Job(Section):
    """A whole manifest."""

    job: JobSection
    model: ModelSection
    adapter: AdapterSection
    training: TrainingSection
    privacy: PrivacySection
    data: DataSection
    evaluation: EvaluationSection
    metrics: MetricsSection | None = None
    aggregation: AggregationSection | None = None

    @model_validator(mode="after")
    def _consistent(self, info: ValidationInfo) -> Self:
        faults = self._task_faults() or self._metrics_faults()
        if info.context != SIGNED:
            faults += futile(self)
        sites, quorum = len(self.data.population), self.training.quorum
        if self.aggregation is not None:
            is_mixed = len({self.rank(site) for site in self.data.population}) > 1
            faults += aggregation_faults(
                self.aggregation, self.adapter.method, quorum, is_mixed=is_mixed
            )
        if quorum > sites:
            faults.append(f"training.quorum must be at most the {sites} sites, got {quorum}")
        strangers = sorted(set(self.adapter.ranks or {}) - set(self.data.population))
        if strangers:
            faults.append(f"adapter.ranks must be of sites of data.population, got {strangers[0]}")
        largest = max(self.data.population.values())
        if self.privacy.delta is not None and self.privacy.delta >= 1 / largest:
            faults.append(
                f"privacy.delta must be less than 1/{largest} (one over the largest "
                f"population), got {self.privacy.delta}"
            )
        if faults:
            raise ValueError("; ".join(faults))
        return self

    def _task_faults(self) -> list[str]:
        """What words with tags need, or must not have."""
        if self.job.task == "token-cls":
            try:
                entity_types(self.data.labels)
            except InvalidInput as error:
                return [str(error)]
            return []
        named = [name for name in ("words", "tags") if getattr(self.evaluation, name) is not None]
        return [f"evaluation.{n} must be absent with task {self.job.task!r}, got it" for n in named]

    def _metrics_faults(self) -> list[str]:
        """What counts of a site's own records need, or must not have."""
        asked = self.metrics
        if asked is None:
            return []
        if not self.is_private:
            return ["metrics must be absent with privacy.mode 'none' (counts leave with noise)"]
        faults = []
        of_task = {"classes": "seq-cls", "entities": "token-cls"}
        for name, task in of_task.items():
            if name in asked.release and self.job.task != task:
                faults.append(
                    f"metrics.release must not hold {name!r} with task {self.job.task!r}, got it"
                )
        if (asked.records_per_unit is None) != (self.privacy.unit == RECORD):
            rule = "absent" if self.privacy.unit == RECORD else "given"
            faults.append(
                f"metrics.records_per_unit must be {rule} with unit {self.privacy.unit!r}, "
                f"got {asked.records_per_unit}"
            )
        if not faults and bins(self.histograms) > MOST_BINS:
            faults.append(
                f"metrics must have at most {MOST_BINS} bins, got {bins(self.histograms)}"
            )
        return faults

    @cached_property
    def histograms(self) -> tuple[Histogram, ...]:
        """What a site's counts are, in their order; empty where none leave."""
        if self.metrics is None:
            return ()
        is_of_words = self.job.task == "token-cls"
        kinds = entity_types(self.data.labels) if is_of_words else ()
        return histograms_of(self.metrics, self.data.labels, kinds)

    @property
    def metrics_cap(self) -> int:
        """The most records of a unit that are counted."""
        return (self.metrics and self.metrics.records_per_unit) or 1

    @property
    def metrics_round(self) -> int:
        """The number under which the counts are charged and kept: after the last round."""
        return self.training.rounds + 1

    @cached_property
    def metrics_event(self) -> GaussianSteps | None:
        """What the counts cost: one Gaussian step of all held-out units, for its share alone."""
        asked, privacy = self.metrics, self.privacy
        if asked is None or privacy.epsilon is None or privacy.delta is None:
            return None
        noise = accounting.calibrate(
            epsilon=asked.share * privacy.epsilon,
            delta=asked.share * privacy.delta,
            sampling_rate=1.0,
            steps=1,
        )
        return GaussianSteps(1.0, noise, 1)

    @property
    def metrics_deviation(self) -> float:
        """The standard deviation of each count's noise; 0 where none leave."""
        event = self.metrics_event
        if event is None:
            return 0.0
        return event.noise_multiplier * sensitivity(self.histograms, self.metrics_cap)

    @property
    def events(self) -> tuple[GaussianSteps, ...]:
        """All that a site which takes part in everything is charged."""
        rate = self.privacy.sampling_rate
        training = GaussianSteps(rate, self.noise_multiplier, self.steps)
        return (training,) if self.metrics_event is None else (training, self.metrics_event)

    @cached_property
    def canonical(self) -> bytes:
        """RFC 8785 canonical JSON: the bytes that are hashed and signed."""
        return rfc8785.dumps(self.model_dump(mode="json", exclude_none=True))

    @cached_property
    def sha256(self) -> str:
        """The job's name on the wire and in every record."""
        return hashlib.sha256(self.canonical).hexdigest()

    @cached_property
    def sites(self) -> tuple[str, ...]:
        """The sites that the job names, sorted."""
        return tuple(sorted(self.data.population))

    @cached_property
    def site_of_node(self) -> dict[int, str]:
        """Flower's node id of each site -> the site."""
        return {node_id(site): site for site in self.sites}

    @cached_property
    def whole_population(self) -> int:
        """Units at all sites together, as declared."""
        return sum(self.data.population.values())

    @property
    def hold_out_columns(self) -> ColumnMap:
        """Which columns the hold-out has, where it is a file."""
        named = self.evaluation
        if self.job.task == "token-cls":
            return ColumnMap(words=named.words or "words", tags=named.tags or "tags")
        return ColumnMap(text=named.text, label=named.label)

    @property
    def is_private(self) -> bool:
        """Whether the job promises differential privacy."""
        return self.privacy.mode != "none"

    @property
    def steps(self) -> int:
        """DP-SGD steps that a site takes when it takes part in every round."""
        return self.training.rounds * self.training.local_steps

    @cached_property
    def noise_multiplier(self) -> float:
        """Noise standard deviation over clip norm; 0 without privacy.

        With it and the counts' own noise, training and counts together cost at most epsilon.
        """
        if self.privacy.epsilon is None or self.privacy.delta is None:
            return 0.0
        return accounting.calibrate(
            epsilon=self.privacy.epsilon,
            delta=self.privacy.delta,
            sampling_rate=self.privacy.sampling_rate,
            steps=self.steps,
            beside=() if self.metrics_event is None else (self.metrics_event,),
        )

    def divisor(self, site: str) -> float:
        """Expected batch size at ``site``: rate times the public population that trains."""
        trains = 1.0 if self.metrics is None else 1 - self.metrics.hold_out
        return self.privacy.sampling_rate * self.data.population[site] * trains

    def rank(self, site: str) -> int:
        """The rank of a site's adapter."""
        return (self.adapter.ranks or {}).get(site, self.adapter.rank)

    def weight(self, site: str) -> float:
        """A site's share of all sites' public population."""
        return self.data.population[site] / self.whole_population


class SignedJob(Section):
    """A manifest and the operator's word for it."""

    job: Job
    signer: Hex64
    signature: Hex128

    def to_bytes(self) -> bytes:
        """JSON, as it travels and is stored."""
        return self.written

    @cached_property
    def written(self) -> bytes:
        """``to_bytes``, once: each message of a job carries it, to each of its sites."""
        return rfc8785.dumps(self.model_dump(mode="json", exclude_none=True))


def load_job(path: Path) -> Job:
    """Read a job file; paths in it are taken from the file's own folder.

    Raises:
        InvalidInput: every fault of the file, each by its key.
    """
    job = parse(Job, with_absolute_paths(read_toml(path), path.resolve().parent), path.name)
    require_countable(job)
    return job


def require_countable(job: Job) -> None:
    """Check that an accountant can say soon what a new job costs, and that its receipts fit.

    Jobs of before may have more.

    Raises:
        InvalidInput: it has more steps or sites than that.
    """
    if len(job.sites) > MOST_JOB_SITES:
        raise InvalidInput(
            f"data.population must name at most {MOST_JOB_SITES} sites, got {len(job.sites)}"
        )
    if job.steps > MOST_JOB_STEPS:
        raise InvalidInput(
            f"training.rounds x training.local_steps must be at most {MOST_JOB_STEPS}, "
            f"got {job.steps}"
        )


def with_absolute_paths(data: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Make the paths of a job's file absolute, in place: they are taken from its ``folder``."""
    for section, key in (("model", "base"), ("evaluation", "data")):
        table = data.get(section)
        value = table.get(key) if isinstance(table, dict) else None
        if isinstance(table, dict) and isinstance(value, str) and value.startswith(("./", "../")):
            table[key] = str((folder / value).resolve())
    return data


def sign_job(job: Job, key: Ed25519PrivateKey) -> SignedJob:
    """Sign a manifest as its operator."""
    return SignedJob(
        job=job,
        signer=key.public_key().public_bytes_raw().hex(),
        signature=key.sign(SIGNATURE_DOMAIN + job.canonical).hex(),
    )


@lru_cache(maxsize=8)
def parse_signed_job(data: bytes) -> SignedJob:
    """Parse what ``SignedJob.to_bytes`` wrote; checks the schema, not the signature.

    Settings that are futile together pass: jobs of before that was refused are read all the same.

    Raises:
        JobRefused: too large, no JSON, or not a job.
    """
    if len(data) > MAX_CONFIG_BYTES:
        raise JobRefused(f"job must be at most {MAX_CONFIG_BYTES} bytes, got {len(data)}")
    try:
        return parse(SignedJob, parse_json(data), "job", SIGNED)
    except (ValueError, TypeError) as error:
        raise JobRefused(f"job must be a signed manifest, got: {error}") from error


def verify_job(signed: SignedJob, allowed_signers: tuple[str, ...]) -> Job:
    """Return the job if one of ``allowed_signers`` (Ed25519 public keys, hex) signed it.

    Raises:
        JobRefused: a stranger's key, or a manifest edited after signing.
    """
    if signed.signer not in allowed_signers:
        raise JobRefused(
            f"job signer must be one of the {len(allowed_signers)} allowed, "
            f"got {signed.signer[:16]}..."
        )
    key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(signed.signer))
    try:
        key.verify(bytes.fromhex(signed.signature), SIGNATURE_DOMAIN + signed.job.canonical)
    except (InvalidSignature, rfc8785.CanonicalizationError) as error:
        raise JobRefused(
            "job signature must be over this manifest, got another (edited after signing?)"
        ) from error
    return signed.job


def require_site(job: Job, site: str) -> None:
    """Check that the job names ``site``.

    Raises:
        InvalidInput: it does not.
    """
    if site not in job.data.population:
        raise InvalidInput(f"site must be one of {', '.join(job.sites)}, got {site!r}")


class JobRecord(Protocol):
    """A job as server and sites keep it."""

    @property
    def sha256(self) -> str: ...  # noqa: D102
    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def state(self) -> str: ...  # noqa: D102


Kept = TypeVar("Kept", bound=JobRecord)


def find_job(kept: Sequence[Kept], wanted: str) -> Kept:
    """The one job of that name, or whose sha256 starts so.

    Raises:
        InvalidInput: there is none, or more than one by either.
    """
    # A job may be named like another's id: whoever types either is asked which one is meant.
    is_prefix = len(wanted) >= _SHORTEST_ID
    found = [
        row for row in kept if row.name == wanted or (is_prefix and row.sha256.startswith(wanted))
    ]
    if len(found) == 1:
        return found[0]
    if not found:
        known = ", ".join(sorted({row.name for row in kept})) or "none yet"
        raise InvalidInput(f"job must be one of those here ({known}), got {wanted!r}")
    choices = ", ".join(f"{row.sha256[:16]} ({row.name}, {row.state})" for row in found)
    raise InvalidInput(f"job must name one job, got {wanted!r} for {choices}")
