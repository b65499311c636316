"""``fl-audit`` with what needs a site's own trainer: mechanism, canary, membership, inversion.

The commands that need nobody's trainer are in ``common/audit/cli.py``.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from client.attack_cli import inversion_command, membership_command
from client.audit_setting import PRIVATE_WORDS, Setting, finish, level_of, set_up, with_records
from common.audit.cli import app as app
from common.audit.report import AuditReport, verdict_of
from common.cli import AsJson, run
from common.errors import InvalidInput

if TYPE_CHECKING:
    from common.audit.canary import Guessed, Plan, Power

__all__ = ["app", "main"]

JobFile = Annotated[Path, typer.Argument(help="The job.toml whose mechanism is audited.")]
SiteName = Annotated[str, typer.Option("--site", help="Whose declared population counts.")]
Runs = Annotated[
    int, typer.Option(help="How many audits of this claim there are or will be, with this one.")
]

_NO_BOUND = 1000.0  # epsilon; a greater one is written as this, which bounds from below too


@app.command("mechanism")
def mechanism_command(
    job: JobFile,
    site: SiteName,
    runs: Runs = 1,
    releases: Annotated[
        int, typer.Option(help="Releases with the adversary, and as many without.")
    ] = 40_000,
    significance: Annotated[
        float, typer.Option(help="How often all runs together refute a true claim.")
    ] = 0.001,
    out: Annotated[Path | None, typer.Option(help="Also write the report there, as JSON.")] = None,
    as_json: AsJson = False,
) -> None:
    """Tell releases with an adversary from others.

    Draws thousands of releases by the code that a site runs, on public records, and refutes the
    job's epsilon or finds it consistent with what was seen.
    """
    from client.auditing import AuditRehearsal
    from common.audit.mechanism import audit_step

    level = level_of(significance, runs)
    setting = set_up(job, site)
    found = audit_step(AuditRehearsal(setting.trainer, site), releases, level)
    bound = setting.bound_by_noise(found.told.mu, _NO_BOUND)
    report = AuditReport(
        name="mechanism",
        job_sha256=setting.job.sha256,
        code_sha256=setting.code_sha256,
        site=site,
        epsilon=setting.epsilon,
        delta=setting.delta,
        lower_bound=bound,
        significance=significance,
        runs=runs,
        verdict=verdict_of(bound, setting.epsilon),
        records="public",
        found={
            "releases": found.releases,
            "noise_multiplier": setting.trainer.mechanism.noise_multiplier,
            "step_epsilon": setting.step_epsilon,
            "step_lower_bound": found.bound(setting.delta),
            "mu": found.mu,
            "mu_lower_bound": found.told.mu,
            "false_positives_at_most": found.told.false_positives,
            "false_negatives_at_most": found.told.false_negatives,
            "mean_of_both_at_most": found.told.errors,
            "adversary_moved_the_sum": found.told.moved,
        },
    )
    step = report.found
    lines = [
        (
            "releases",
            f"{found.releases} by the site's own code, of one step that samples everybody",
        ),
        ("that step claims", f"epsilon {setting.step_epsilon:.3f}"),
        ("refuted below", f"epsilon {step['step_lower_bound']:.3f}"),
        ("an adversary moved the sum by", f"{found.told.moved:.6g} clip norms"),
    ]
    finish(report, lines, out, as_json=as_json)


@app.command("canary")
def canary_command(
    job: JobFile,
    site: SiteName,
    out: Annotated[Path, typer.Option(help="A new folder: plan.json before, the rest after.")],
    canaries: Annotated[int, typer.Option(help="Gradients planted by coin flips.")] = 1000,
    guesses: Annotated[
        int, typer.Option(help="Coins that are guessed; 0 for what shows most.")
    ] = 0,
    runs: Runs = 1,
    number: Annotated[int, typer.Option("--run", help="Which of the runs this is.")] = 1,
    significance: Annotated[
        float, typer.Option(help="How often all runs together refute a true claim.")
    ] = 0.05,
    records: Annotated[
        Path | None,
        typer.Option(help="Private records to train among; by default the public hold-out's."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Plant canaries in one run and guess which.

    Trains the whole job at one site, by the site's own code, and never for release. What is guessed
    is written down before training, with a commitment to the coins.
    """
    from client import canary_run
    from common.files import make_folder, write_file

    if not 1 <= number <= runs:
        raise InvalidInput(f"run must be 1 to runs = {runs}, got {number}")
    level_of(significance, runs)
    setting = with_records(set_up(job, site), records)
    prepared = canary_run.prepare(setting, canaries, guesses, significance, runs, number)
    if out.exists():
        raise InvalidInput(f"out must not exist yet (every run counts), got {out}")
    make_folder(out)
    write_file(out / "plan.json", prepared.plan.to_bytes(), overwrite=False)
    guessed = canary_run.perform(setting, prepared)
    write_file(out / "coins.json", prepared.coins_document(), overwrite=False)
    report = _canary_report(setting, prepared.plan, guessed, prepared.power)
    lines = _canary_lines(prepared.plan, guessed, prepared.power, setting)
    finish(report, lines, out / "report.json", as_json=as_json)


def _canary_report(
    setting: Setting, plan: "Plan", guessed: "Guessed", power: "Power"
) -> AuditReport:
    return AuditReport(
        name="canary",
        job_sha256=plan.job_sha256,
        code_sha256=plan.code_sha256,
        site=plan.site,
        epsilon=plan.epsilon,
        delta=plan.delta,
        lower_bound=guessed.bound,
        significance=plan.significance,
        runs=plan.runs,
        verdict=verdict_of(guessed.bound, plan.epsilon),
        records="private" if setting.is_private else "public",
        preregistration_sha256=plan.sha256,
        found={
            "canaries": plan.canaries,
            "guesses": plan.guesses,
            "right": guessed.right,
            "right_if_sound": power.right,
            "lower_bound_any_claim": guessed.general,
            "lower_bound_gaussian": guessed.gaussian,
            "expected_lower_bound": power.expected,
            "ceiling": power.ceiling,
        },
    )


def _canary_lines(
    plan: "Plan", guessed: "Guessed", power: "Power", setting: Setting
) -> list[tuple[str, str]]:
    right = f"{guessed.right} of {plan.guesses} (an ideal sound run: {power.right})"
    lines = [
        ("canaries", f"{plan.canaries} by coin flips, run {plan.run} of {plan.runs}"),
        ("right guesses", right),
        ("refuted below, any claim", f"epsilon {guessed.general:.3f}"),
        ("refuted below, Gaussian", f"epsilon {guessed.gaussian:.3f}"),
        ("power", power.in_words(plan.epsilon)),
    ]
    return [*lines, ("records", PRIVATE_WORDS)] if setting.is_private else lines


app.command("membership")(membership_command)
app.command("inversion")(inversion_command)


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``fl-audit``."""
    return run(app, argv, "fl-audit")
