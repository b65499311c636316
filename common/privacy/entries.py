"""What a site's ledger may say: a closed set of entries, each in one canonical form.

An entry's body is the RFC 8785 canonical JSON of one of these models. The salt hides it: neither
its hash nor a proof about its neighbours lets anybody guess what it says.

A later version may add kinds, and fields with a default; it never changes what a recorded field
means, so that every ledger ever written is replayed to the same charges.

Not covered: their order (common/privacy/account.py) and chain (common/privacy/ledger.py).
"""

from datetime import datetime
from typing import Annotated, Literal, TypeVar

import rfc8785
from pydantic import (
    AfterValidator,
    Field,
    JsonValue,
    StringConstraints,
    TypeAdapter,
    ValidationError,
)

from common.config import Section, Sha256
from common.errors import InvalidInput, LedgerBroken


def _of_calendar(stamp: str) -> str:
    datetime.fromisoformat(stamp)  # no 30th of February, which the pattern lets pass
    return stamp


Stamp = Annotated[
    str,
    StringConstraints(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ\z"),
    AfterValidator(_of_calendar),
]
Salt = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}\z")]
PublicKeyDer = Annotated[str, StringConstraints(pattern=r"^([0-9a-f]{2}){1,200}\z")]
SignatureDer = Annotated[str, StringConstraints(pattern=r"^([0-9a-f]{2}){0,80}\z")]
Words = Annotated[str, StringConstraints(max_length=500)]
Count = Annotated[int, Field(ge=0, lt=2**53)]


class Terms(Section):
    """Under which terms a Gaussian step is charged, beside its rate and noise.

    Attributes:
        unit: whose contribution is bounded: ``record``, or a column's name.
        unit_cap: the most records of a unit; ``None`` for records.
        adjacency: the neighbouring relation.
        delta: the job's; ``None`` without privacy.
        sampler: how units are drawn.
    """

    unit: Words = "record"
    unit_cap: Count | None = None
    adjacency: Literal["add-or-remove-one"] = "add-or-remove-one"
    delta: float | None = Field(default=None, gt=0, lt=1)
    sampler: Literal["poisson"] = "poisson"


class Steps(Section):
    """Gaussian steps as the ledger writes them; noise 0 is a job without privacy."""

    sampling_rate: float = Field(ge=0, le=1)
    noise_multiplier: float = Field(ge=0)
    steps: Count


class Entry(Section):
    """What every entry has.

    Attributes:
        seq: its place, from 0.
        at: when the site's clock said it was; nothing follows from it.
        salt: 128 random bits.
    """

    seq: Count
    at: Stamp
    salt: Salt


class _Key(Entry):
    """An entry that names the key (SubjectPublicKeyInfo, DER, hex) which signs it and the next."""

    public_key: PublicKeyDer
    is_ephemeral: bool


class Created(_Key):
    """The first entry: whose ledger it is, and the lifetime cap, fixed for ever.

    ``binds_keys``: no later key without an endorsement or a person; false by an earlier version.
    """

    kind: Literal["created"] = "created"
    format: Literal[1] = 1
    site: Words
    unit: Words
    cap: dict[str, JsonValue]
    binds_keys: bool = False


class Rekeyed(_Key):
    """From here on another key of the site signs.

    Attributes:
        endorsement: the key before has signed the new one (common/privacy/ledger.py), hex; empty
            where it was not at hand.
        accepted_by: the person who took the new key on; empty by an earlier version.
    """

    kind: Literal["rekeyed"] = "rekeyed"
    endorsement: SignatureDer = ""
    accepted_by: Words = ""

    @property
    def words(self) -> str:
        """How the key came to follow the one before."""
        if not self.endorsement and not self.accepted_by:
            return "named by an earlier version, endorsed by nobody"
        how = "handed over by the key before" if self.endorsement else "without the key before"
        return f"{how}, accepted by {self.accepted_by}" if self.accepted_by else how


class _OfJob(Entry):
    job_sha256: Sha256


class _Imported(_OfJob):
    """``is_imported``: from an account of before the ledger; ``at`` is the time of the import."""

    is_imported: bool = False


# What a charge is for: a round's update, or a job's one release of counts.
Purpose = Literal["update", "metrics"]


class Submitted(_Imported):
    """A job was accepted: its whole budget (``None``: not stated), and what its messages may be.

    ``metrics``: what its counts will be charged beside the plan; ``None`` where none leave. The
    entry's salt also decides which units are held out for them (common/hold_out.py).
    """

    kind: Literal["submitted"] = "submitted"
    name: Words
    manifest_sha256: Sha256
    message_cap_bytes: Count
    plan: Steps | None
    terms: Terms
    code_sha256: str
    accountant: Words
    metrics: Steps | None = None


class Reserved(_Imported):
    """All steps of a round are charged, before a record is touched.

    ``purpose``: with ``metrics`` it is the job's one release of counts, after which no round is.
    ``job_steps``: all steps of training that the job was charged by then, these included, so that
    no charge between two others can be kept from an auditor; ``None`` by an earlier version.
    """

    kind: Literal["reserved"] = "reserved"
    round: Count
    input_sha256: Sha256
    start_sha256: str
    charge: Steps
    terms: Terms
    code_sha256: str
    accountant: Words
    purpose: Purpose = "update"
    job_steps: Count | None = None


class Released(_Imported):
    """A round's finished bytes exist and may leave."""

    kind: Literal["released"] = "released"
    round: Count
    payload_sha256: Sha256


class Committed(_Imported):
    """The server's receipt for these bytes."""

    kind: Literal["committed"] = "committed"
    round: Count
    payload_sha256: Sha256
    is_accepted: bool


class Closed(_Imported):
    """A job ended; its charges stay.

    ``is_final``: nothing of the job follows but receipts. Closes of before this field said any
    word, and could be followed by others. ``steps``, ``counts``: all steps of training and releases
    of counts that the job was charged; ``None`` by an earlier version.
    """

    kind: Literal["closed"] = "closed"
    state: Words
    final_sha256: Words
    is_final: bool = False
    steps: Count | None = None
    counts: Count | None = None


class Decided(_OfJob):
    """A person approved or refused a job."""

    kind: Literal["decided"] = "decided"
    decision: Literal["approve", "refuse"]
    who: Words
    note: Words


AnyEntry = Annotated[
    Created | Rekeyed | Submitted | Reserved | Released | Committed | Closed | Decided,
    Field(discriminator="kind"),
]
_PARSER: TypeAdapter[AnyEntry] = TypeAdapter(AnyEntry)
Made = TypeVar("Made", bound=Entry)


def write_entry(model: type[Made], **fields: object) -> bytes:
    """An entry's body.

    Raises:
        InvalidInput: a field is not what the schema allows, or has no canonical form.
    """
    try:
        entry = model.model_validate(fields)
        body = rfc8785.dumps(entry.model_dump(mode="json"))
        read_entry(body, 0)
    except (ValidationError, rfc8785.CanonicalizationError, LedgerBroken) as error:
        raise InvalidInput(f"ledger entry must keep to its schema, got: {_words(error)}") from error
    return body


def read_entry(body: bytes, seq: int) -> AnyEntry:
    """The entry of a body; ``seq`` names it in the error.

    Raises:
        LedgerBroken: not one of the closed set, or not in canonical form.
    """
    try:
        entry = _PARSER.validate_json(body)
        canonical = rfc8785.dumps(entry.model_dump(mode="json", exclude_unset=True))
    except (ValidationError, rfc8785.CanonicalizationError) as error:
        raise LedgerBroken(
            f"ledger entry {seq} must keep to its schema, got: {_words(error)}"
        ) from error
    if canonical != body:
        raise LedgerBroken(f"ledger entry {seq} must be canonical JSON, got another form")
    return entry


def _words(error: Exception) -> str:
    if not isinstance(error, ValidationError):
        return str(error)
    faults = (f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
    return "; ".join(faults)[:300]
