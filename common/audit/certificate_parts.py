"""The parts of a privacy certificate, each in the words of NIST SP 800-226 (2025).

Null stands where there is no number, as for no bound at all. Not covered: what they must say
(common/audit/certification.py).
"""

from typing import Annotated, Literal, Self

from pydantic import ConfigDict, Field, StringConstraints, model_validator

from common.audit.report import AuditName, Verdict, verdict_of
from common.config import VERSION_PATTERN, Name, Section, Sha256, TaskName

Text = Annotated[str, StringConstraints(max_length=4000)]
Software = Annotated[str, Field(pattern=rf"^veiltune (?:unknown|{VERSION_PATTERN})\z")]
AccountingSoftware = Annotated[
    str,
    Field(
        pattern=rf"^(?:dp-accounting|opacus) {VERSION_PATTERN}"
        rf"(?:; the run's own was dp-accounting {VERSION_PATTERN})?\z"
    ),
]
Epsilon = Annotated[float, Field(ge=0)]
Delta = Annotated[float, Field(gt=0, lt=1)]
Count = Annotated[int, Field(ge=0, lt=2**53)]
Several = Annotated[int, Field(ge=1, lt=2**53)]
Sentences = Annotated[tuple[Text, ...], Field(strict=False, max_length=10_100)]


class Part(Section):
    """A number is a number here, not a string that looks like one."""

    model_config = ConfigDict(strict=True)


class JobNamed(Part):
    """Which job: the manifest's sha256 names it; ``operator`` is the Ed25519 key that signed it.

    ``adapter_sha256`` is of the file, ``vector_sha256`` of its numbers as the kept round's receipt
    names them; absent in a certificate of before.
    """

    name: Name
    sha256: Sha256
    operator: Sha256
    task: TaskName
    description: Text
    base: Text
    base_sha256: Sha256
    adapter_sha256: Sha256
    vector_sha256: Sha256 | None = None
    rounds_closed: Count


class SharedNoise(Part):
    """A second epsilon, where sites share the noise: what holds if one link of it fails.

    ``epsilon`` is from the site's own noise alone; ``rests_on`` says what must hold for the first.
    """

    epsilon: Epsilon | None
    delta: Delta
    rests_on: Text


class Promise(Part):
    """The claim itself, for the site that spent most; ``epsilon`` null: no bound."""

    definition: Literal["(epsilon, delta)-differential privacy"]
    neighbours: Literal["add-or-remove-one"]
    unit: Name
    unit_means: Text
    unit_cap: Several | None
    epsilon: Epsilon | None
    delta: Delta
    shared_noise: SharedNoise | None
    meaning: Text
    as_a_bet: Text


class Mechanism(Part):
    """Enough to compute every epsilon again.

    ``noise_deviation``: of the noise on a step's sum, in units of the gradient, before rounding.
    ``counts_noise_multiplier``: of figures that sites release beside updates; null: none are.
    """

    name: Literal["DP-SGD: Poisson-subsampled Gaussian"]
    clip_norm: Annotated[float, Field(gt=0)]
    noise_multiplier: Annotated[float, Field(gt=0)]
    noise_deviation: Annotated[float, Field(gt=0)]
    sampling_scheme: Literal["poisson"]
    sampling_rate: Annotated[float, Field(gt=0, le=1)]
    steps_per_round: Several
    most_steps: Count
    counts_noise_multiplier: Annotated[float, Field(gt=0)] | None


class CountsReleased(Part):
    """A second mechanism, in every epsilon: counts of held-out records, once a site.

    Absent where a job has none.

    Attributes:
        hold_out: the share of a site's units that train nothing and are counted.
        share: the share of the job's epsilon and delta that the counts alone may cost.
        records_per_unit: the most records of a unit that count.
        sensitivity: what one unit can move all of a site's counts together, in L2.
        noise_multiplier: noise over sensitivity; ``noise_deviation``: on each count.
        epsilon: of the counts by themselves, at ``delta``.
    """

    name: Literal["Gaussian, rounded to whole numbers, on every count"]
    histograms: Annotated[tuple[Text, ...], Field(strict=False, min_length=1)]
    hold_out: Annotated[float, Field(gt=0, lt=1)]
    share: Annotated[float, Field(gt=0, lt=1)]
    records_per_unit: Several
    sensitivity: Annotated[float, Field(gt=0)]
    noise_multiplier: Annotated[float, Field(gt=0)]
    noise_deviation: Annotated[float, Field(gt=0)]
    epsilon: Epsilon | None
    delta: Delta


class Accountant(Part):
    """One of three that computed every epsilon."""

    name: Literal["pld", "prv", "rdp"]
    software: AccountingSoftware
    role: Text


class Figures(Part):
    """One epsilon by three accountants; null: no bound, or the accountant failed."""

    pld: Epsilon | None
    prv: Epsilon | None
    rdp: Epsilon | None
    doubt: Text


class Lifetime(Part):
    """The life of a site's data, as far as this evidence shows it.

    Attributes:
        epsilon_shown: of all charges in the evidence; those of other jobs are not in it.
        cap_epsilon: the cap in the ledger's first entry; null where the evidence has no such entry.
        cap_figure: what the charges shown cost by the cap's own accounting.
        ledger_entries: how many the site's last signed head counts; null without one.
        entries_shown: how many of them this evidence opens.
    """

    epsilon_shown: Epsilon | None
    delta_shown: Delta
    cap_epsilon: Annotated[float, Field(gt=0)] | None
    cap_delta: Delta | None
    cap_accountant: Text | None
    cap_figure: Epsilon | None
    ledger_entries: Count | None
    entries_shown: Count


class SiteSpent(Part):
    """What one site spent.

    Attributes:
        population: declared in the job, never counted.
        steps: charged to it; ``steps_signed`` of them by rows that it signed, the rest for rounds
            that it was asked for and never answered, or that were not closed.
        last_word_shown: whether its last word on the job is in the evidence. Without it every round
            of the plan after its last charge counts as charged; absent in a certificate of before.
        releases_of_counts: that are charged to it, 0 or 1; ``epsilon`` is with them.
        person_epsilon: of somebody with ``person_records`` records at this site.
    """

    name: Name
    population: Several
    steps: Count
    steps_signed: Count
    rounds_asked: Count
    last_word_shown: bool | None = None
    releases_of_counts: Count
    epsilon: Epsilon | None
    delta: Delta
    figures: Figures
    person_records: Several
    person_epsilon: Epsilon | None
    lifetime: Lifetime


class Together(Part):
    """One person known to several sites: the ``sites`` that spent most, at the same delta."""

    sites: Several
    epsilon: Epsilon | None
    delta: Delta


class Party(Part):
    """Who sees what."""

    party: Text
    sees: Text
    never_sees: Text


class Implementation(Part):
    """How the mechanism is made on real computers."""

    randomness: Text
    floating_point: Text
    lattice: Text
    side_channels: Text
    self_checks: Annotated[tuple[Text, ...], Field(strict=False, max_length=100)]


class BudgetPolicy(Part):
    """Who may spend how much."""

    job_epsilon: Annotated[float, Field(gt=0)]
    job_delta: Delta
    words: Sentences


class Utility(Part):
    """What the privacy bought, on a public hold-out.

    ``disjoint_because`` is the operator's reason that no unit of a site is in it, or null where the
    operator declared none; nobody checked it, and ``disjointness`` says so.
    """

    measure: Text
    score: Annotated[float, Field(ge=0, le=1)] | None
    macro_f1: Annotated[float, Field(ge=0, le=1)] | None
    worst_class: Text | None
    worst_class_f1: Annotated[float, Field(ge=0, le=1)] | None
    data: Text
    disjoint_because: Text | None = None
    disjointness: Text = ""
    words: Text


class Audit(Part):
    """A report that was handed in: an attack's lower bound beside the claim, never a measurement.

    ``epsilon`` is the one that the report compared itself with, of all steps of the job;
    ``significance`` is shared by all ``runs`` on the claim.
    """

    name: AuditName
    site: Name
    code_sha256: Sha256
    runs: Annotated[int, Field(ge=1, le=100_000)]
    lower_bound: Epsilon
    significance: Annotated[float, Field(gt=0, lt=1)]
    epsilon: Epsilon
    verdict: Verdict

    @model_validator(mode="after")
    def _verdict_follows(self) -> Self:
        if self.verdict != verdict_of(self.lower_bound, self.epsilon):
            raise ValueError(f"verdict must follow from the bound, got {self.verdict!r}")
        return self


class Signature(Part):
    """Something that a key signed, and where it is in the bundle; ``key`` is a sha256 or a key."""

    what: Text
    by: Text
    algorithm: Text
    where: Text
    key: Text
