"""The rules in force as the server knows them: the job's constants and its own conduct.

Not covered: the sites' own rules. They are files that the sites own and keep; a site tells whether
it accepts a job, never why not.
"""

from common.audit.assurances import SECURITY
from common.audit.evidence import Evidence
from common.documents.sheet import Bullets, Code, Section, Sheet, Terms, section
from common.documents.standing import page
from common.figures import NOTHING, plain, power
from common.words import counted, public_name

# What fl-audit prints and what a site approves; job.json's own hash is another, of the signed form.
JOB_ID = "Job id (sha256 of the unsigned manifest, as fl-audit prints)"
_RELEASES = (
    "A verdict on a job: yes, or no in words that follow from public facts, or fixed ones.",
    "One noised update a round, with public constants beside it.",
    "The head of the site's ledger and the signed row of the charge: a count of entries and salted "
    "hashes.",
)
_NOTHING_ELSE = "Nothing else: no loss, no count, no metric, no time, no error text of a record."
_NO_MORE = "Nothing else: no other count, loss or metric, no time, no error text of a record."

AT_THE_SITES = (
    "Which jobs, signers, data sets, tasks, base models, units and noise a site allows.",
    "The cap over the life of its data, and whether a person must approve a job. (The cap stands "
    "in the first entry of its ledger, and is on the certificate where the evidence has that.)",
    "Memory and minutes that a job may take.",
)


def policies_sheet(evidence: Evidence) -> Sheet:
    """The page."""
    return page(
        evidence,
        "policies in force",
        (
            _privacy(evidence),
            _training(evidence),
            section("What may leave a site", Bullets(_releases(evidence))),
            section("Whom the server admits, and how it is reached", Bullets(SECURITY)),
            section("What stays at the sites, in their own site.toml", Bullets(AT_THE_SITES)),
        ),
    )


def _releases(evidence: Evidence) -> tuple[str, ...]:
    """What may leave a site: counts too, where the job that its operator signed asks for some."""
    metrics = evidence.job.job.metrics
    if metrics is None:
        return (*_RELEASES, _NOTHING_ELSE)
    what = ", ".join(metrics.release)
    counts = f"After the last round, once: noised counts of held-out records ({what}), charged."
    return (*_RELEASES, counts, _NO_MORE)


def _privacy(evidence: Evidence) -> Section:
    privacy = evidence.job.job.privacy
    return section(
        "The job's privacy, as its operator signed it",
        Terms(
            (
                ("Mode", privacy.mode),
                ("Unit", privacy.unit),
                ("Records of a unit in a step", str(privacy.unit_cap or "one is a unit")),
                (
                    "Epsilon, at most",
                    NOTHING if privacy.epsilon is None else plain(privacy.epsilon),
                ),
                ("Delta", power(privacy.delta)),
                ("Clip norm", NOTHING if privacy.clip_norm is None else plain(privacy.clip_norm)),
                ("Sampling rate", plain(privacy.sampling_rate)),
                ("Signed by (Ed25519)", Code(evidence.job.signer)),
                (JOB_ID, Code(evidence.result.job_sha256)),
            )
        ),
    )


def _training(evidence: Evidence) -> Section:
    job = evidence.job.job
    training = job.training
    patience = "none"
    if training.patience is not None:
        patience = f"{counted(training.patience, 'round')} without a better one on the hold-out"
    return section(
        "The job's rounds",
        Terms(
            (
                (
                    "Rounds planned",
                    f"{training.rounds:,} of {counted(training.local_steps, 'step')}",
                ),
                ("Rounds closed", f"{evidence.result.last_round:,}"),
                ("Ends early after", patience),
                ("Quorum", f"{training.quorum:,} of {counted(len(job.sites), 'site')}"),
                ("Deadline of a round", f"{plain(training.deadline_s)} s"),
                ("Norm of an update, at most", plain(training.max_update_norm)),
                ("Update on the wire", training.codec),
                ("Adapter", f"{job.adapter.method}, rank {job.adapter.rank}"),
                ("Base model", public_name(job.model.base)),
                ("Base model (sha256)", Code(job.model.sha256)),
            )
        ),
    )
