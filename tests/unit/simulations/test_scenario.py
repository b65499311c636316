"""Scenarios are jobs; what a simulation deals out is whole, its own and counted."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from client.config import load_home
from client.policy import rulings
from common.data import catalogue, wards
from common.errors import InvalidInput
from common.job import load_job
from common.privacy.accounting import GaussianSteps, epsilon
from simulations.homes import write_home
from simulations.partitions import MAX_SITES
from simulations.scenario import (
    DEFAULT,
    FOLDER,
    Options,
    load_scenario,
    parse_value,
    require_declared_truly,
    shared_with_hold_out,
)

# Each loads sets of its own: the default's stands for the others where quickness counts.
EXAMPLES = [
    pytest.param(path, id=path.stem, marks=() if path == DEFAULT else pytest.mark.slow)
    for path in sorted(FOLDER.glob("*.toml"))
]


@pytest.mark.parametrize("path", EXAMPLES)
def test_an_example_job_is_complete_and_keeps_its_promise(path: Path) -> None:
    job = load_job(path)
    steps = GaussianSteps(job.privacy.sampling_rate, job.noise_multiplier, job.steps)
    assert job.privacy.epsilon is not None
    assert job.privacy.delta is not None
    assert 0 < epsilon([steps], job.privacy.delta) <= job.privacy.epsilon
    assert set(job.sites) == set(job.data.population)


def test_the_hospitals_of_the_default_bring_their_own_notes_and_the_declared_population() -> None:
    scenario = load_scenario(DEFAULT, Options())
    assert scenario.job == load_job(DEFAULT)
    for site, rows in scenario.records.items():
        assert {row.group for row in rows} == {site}
    assert set(scenario.job.data.labels) == set(wards.LABELS)


@pytest.mark.realdata
def test_the_banks_questions_are_dealt_out_anew_and_counted() -> None:
    if catalogue.local_path("banking77", "train") is None:
        pytest.skip("banking77 is neither in VEILTUNE_DATA nor in ../shared/data")
    scenario = load_scenario(FOLDER / "bank.toml", Options())
    sizes = {site: len(rows) for site, rows in scenario.records.items()}
    assert scenario.job.data.population == sizes
    assert sum(sizes.values()) == 10003
    assert {row.label for rows in scenario.records.values() for row in rows} == set(
        scenario.job.data.labels
    )


@pytest.mark.slow
def test_more_sites_than_hospitals_share_their_patients_out_whole() -> None:
    scenario = load_scenario(DEFAULT, Options(sites=11, seed=3))
    homes: dict[str, set[str]] = {}
    for site, rows in scenario.records.items():
        for row in rows:
            homes.setdefault(row.unit, set()).add(site)
    assert len(scenario.records) == 11
    assert all(len(sites) == 1 for sites in homes.values())
    assert scenario.job.data.population == {s: len(r) for s, r in scenario.records.items()}


def test_a_seed_fixes_data_partition_and_initialisation() -> None:
    same = [load_scenario(DEFAULT, Options(seed=5, partition="iid")) for _ in range(2)]
    other = load_scenario(DEFAULT, Options(seed=6, partition="iid"))
    assert same[0].records == same[1].records
    assert same[0].job.sha256 == same[1].job.sha256
    assert same[0].records != other.records
    assert same[0].job.adapter.seed == 5


def test_a_seed_that_is_set_by_its_key_is_kept() -> None:
    made = load_scenario(DEFAULT, Options(seed=5, values={"adapter.seed": 7}))
    assert (made.job.adapter.seed, made.seed) == (7, 5)
    made = load_scenario(DEFAULT, Options(seed=5, values={"simulation.seed": 7}))
    assert (made.job.adapter.seed, made.seed) == (5, 7)


def test_options_reach_the_job_and_no_privacy_takes_its_numbers_away() -> None:
    values = dict([parse_value("training.learning_rate=0.125"), parse_value("job.name=other")])
    job = load_scenario(DEFAULT, Options(no_privacy=True, values=values)).job
    assert (job.training.learning_rate, job.job.name) == (0.125, "other")
    assert not job.is_private
    assert job.noise_multiplier == 0
    assert job.privacy.sampling_rate == load_job(DEFAULT).privacy.sampling_rate


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (Options(sites=0), "sites must be 1 to 4096, got 0"),
        (Options(sites=4097), "sites must be 1 to 4096, got 4097"),
        (Options(values={"training.epochs": 3}), "training.epochs must be a known key"),
        (Options(values={"rounds": 3}), "option must be SECTION.KEY=VALUE, got 'rounds'"),
        (Options(data="wards"), "data must be a path to a file or one of"),
        (Options(partition="dirichlet:x"), "dirichlet"),
    ],
)
def test_a_bad_option_is_named(options: Options, words: str) -> None:
    with pytest.raises(InvalidInput, match=words.replace("(", r"\(")):
        load_scenario(DEFAULT, options)


def test_as_many_sites_as_the_scale_benchmark_has_may_be_asked_for(tmp_path: Path) -> None:
    records, most = tmp_path / "two_each.jsonl", MAX_SITES  # of scale.py as well
    rows = ({"text": f"note {i}", "label": "ab"[i % 2]} for i in range(2 * most))
    records.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = Options(sites=most, data=str(records), partition="iid", no_privacy=True)
    scenario = load_scenario(DEFAULT, options)
    assert scenario.job.data.population == {site: len(r) for site, r in scenario.records.items()}
    assert list(scenario.job.data.population.values()) == [2] * most


def test_an_unknown_key_of_the_simulation_table_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "job.toml"
    path.write_text(DEFAULT.read_text() + "\n[simulation]\npartitions = 'iid'\n")
    with pytest.raises(InvalidInput, match="partitions must be a known key"):
        load_scenario(path, Options())


def test_a_home_holds_its_own_rows_and_allows_just_its_job(tmp_path: Path) -> None:
    scenario = load_scenario(DEFAULT, Options())
    home = write_home(
        tmp_path / "B", "B", scenario.records["B"], scenario.job, signer="ab" * 32, threads=1
    )
    assert load_home(home.folder, "B") == home
    rows: list[dict[str, Any]] = [
        json.loads(line) for line in (home.folder / "records.jsonl").read_text().splitlines()
    ]
    assert [row["text"] for row in rows] == [row.text for row in scenario.records["B"]]
    policy = home.config.policy
    assert (policy.max_epsilon, policy.max_delta) == (8.0, 1e-5)
    assert policy.allowed_signers == ("ab" * 32,)
    assert not policy.allow_no_privacy


def test_a_home_calls_its_unit_what_the_job_calls_it(tmp_path: Path) -> None:
    values: dict[str, Any] = {"privacy.unit": "patient", "privacy.unit_cap": 3}
    scenario = load_scenario(DEFAULT, Options(values=values))
    home = write_home(tmp_path / "A", "A", scenario.records["A"], scenario.job, signer="ab" * 32)
    assert [ruling for ruling in rulings(scenario.job, home) if not ruling.is_met] == []
    units = {row.unit for row in scenario.records["A"]}
    assert scenario.job.data.population["A"] == len(units) < len(scenario.records["A"])


def test_the_wards_notes_can_be_a_job_of_entities_and_homes_hold_their_words(
    tmp_path: Path,
) -> None:
    scenario = load_scenario(DEFAULT, Options(values={"job.task": "token-cls"}))
    assert scenario.job.data.labels == wards.TAG_SET
    assert scenario.job.data.population == {"A": 600, "B": 600, "C": 600}
    home = write_home(tmp_path, "B", scenario.records["B"], scenario.job, signer="ab" * 32)
    assert all(r.is_met for r in rulings(scenario.job, home))
    row = json.loads((tmp_path / "records.jsonl").read_text().splitlines()[0])
    assert row.keys() == {"words", "tags", "unit", "group", "sex", "age"}


@pytest.mark.realdata
def test_the_hospitals_that_look_for_diseases_get_sentences_and_their_tag_set() -> None:
    if catalogue.local_path("ncbi_disease", "train") is None:
        pytest.skip("ncbi_disease is neither in VEILTUNE_DATA nor in ../shared/data")
    scenario = load_scenario(FOLDER / "disease.toml", Options(partition="iid"))
    assert scenario.job == load_job(FOLDER / "disease.toml")
    made = load_scenario(FOLDER / "disease.toml", Options(data="ncbi_disease", sites=2))
    assert made.job.data.labels == ("O", "B-Disease", "I-Disease")


def test_hold_out_records_that_a_site_has_as_well_are_counted() -> None:
    scenario = load_scenario(DEFAULT, Options())
    assert shared_with_hold_out(scenario) == 0
    evaluation = scenario.job.evaluation
    held = catalogue.load(evaluation.data, evaluation.split, scenario.job.hold_out_columns)
    crossed = replace(scenario, records={**scenario.records, "A": held[:5]})
    assert shared_with_hold_out(crossed) == 5


@pytest.mark.realdata
@pytest.mark.parametrize("path", EXAMPLES)
def test_an_example_declares_a_disjoint_hold_out_where_it_is_and_nowhere_else(path: Path) -> None:
    how = "iid" if path.stem in ("adverse", "disease") else None
    try:
        scenario = load_scenario(path, Options(partition=how))
    except InvalidInput:
        pytest.skip("a public set is neither here nor reachable")
    declared = scenario.job.evaluation.disjoint_because is not None
    assert declared == (shared_with_hold_out(scenario) == 0)


def test_a_false_declaration_is_refused_where_both_sides_are_public() -> None:
    scenario = load_scenario(DEFAULT, Options())
    evaluation = scenario.job.evaluation
    held = catalogue.load(evaluation.data, evaluation.split, scenario.job.hold_out_columns)
    require_declared_truly(scenario, shared_with_hold_out(scenario))
    other = [replace(row, unit=held[0].unit, text=f"another text {row.text}") for row in held[:2]]
    job = scenario.job.model_copy(
        update={
            "privacy": scenario.job.privacy.model_copy(update={"unit": "patient_id", "unit_cap": 6})
        }
    )
    crossed = replace(scenario, job=job, records={"A": other})
    shared = shared_with_hold_out(crossed)
    assert shared == sum(row.unit == held[0].unit for row in held) > 0
    with pytest.raises(InvalidInput, match="disjoint_because must be absent where the hold-out"):
        require_declared_truly(crossed, shared)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(Options(data="builtin:wards"), marks=pytest.mark.slow),
        Options(values={"evaluation.split": "train"}),
    ],
)
def test_words_on_one_hold_out_are_not_said_of_another(options: Options) -> None:
    assert load_scenario(DEFAULT, Options()).job.evaluation.disjoint_because is not None
    assert load_scenario(DEFAULT, options).job.evaluation.disjoint_because is None


def test_a_job_with_counts_is_allowed_at_its_homes_and_no_privacy_takes_them_out(
    tmp_path: Path,
) -> None:
    asked = {"release": ["accuracy"], "hold_out": 0.25, "share": 0.1}
    values = {f"metrics.{key}": value for key, value in asked.items()}
    scenario = load_scenario(DEFAULT, Options(values=values))
    home = write_home(tmp_path / "A", "A", scenario.records["A"], scenario.job, signer="ab" * 32)
    assert home.config.policy.allowed_releases == ("update", "metrics")
    plain = load_scenario(DEFAULT, Options(values=values, no_privacy=True))
    assert plain.job.metrics is None
