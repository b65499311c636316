from pathlib import Path

import pytest

from client.config import default_home, load_home
from common.data.records import ColumnMap
from common.errors import InvalidInput

WHOLE = """
site = "A"
server = "10.0.0.7:8443"
[policy]
allowed_signers = ["{signer}"]
max_epsilon = 3.5
[data.notes]
path = "data/notes.csv"
label = "ward"
unit = "patient"
[models]
"builtin:minilm" = "models/mini"
""".format(signer="ab" * 32)


def write(folder: Path, text: str = WHOLE) -> Path:
    (folder / "site.toml").write_text(text, encoding="utf-8")
    return folder


def test_paths_are_taken_from_the_home_and_columns_from_the_file(tmp_path: Path) -> None:
    home = load_home(write(tmp_path), "A")
    assert home.site == "A"
    assert home.path(home.data_set("notes").path) == tmp_path / "data/notes.csv"
    assert home.data_set("notes").columns == ColumnMap(label="ward", unit="patient")
    assert home.models == {"builtin:minilm": tmp_path / "models/mini"}
    assert home.account_path == tmp_path / "account.db"


def test_words_and_their_tags_take_the_place_of_text_and_label(tmp_path: Path) -> None:
    text = WHOLE.replace('label = "ward"', 'words = "tokens"\ntags = "ner"')
    mapped = load_home(write(tmp_path, text), "A").data_set("notes")
    assert mapped.columns.named() == {"words": "tokens", "tags": "ner", "unit": "patient"}
    assert mapped.tasks == ("token-cls",)


def test_what_is_not_said_is_the_cautious_default(tmp_path: Path) -> None:
    policy = load_home(write(tmp_path, 'site = "A"'), "A").config.policy
    assert policy.allowed_signers == ()
    assert (policy.max_epsilon, policy.max_delta) == (8.0, 1e-5)
    assert policy.allow_no_privacy is False
    assert policy.lifetime == "rdp-filter"
    assert policy.allowed_releases == ("update",)


@pytest.mark.parametrize("name", ["../x", "..", "/etc", "a/b", "", "-x"])
def test_a_site_whose_name_is_a_path_has_no_home(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidInput, match="site must be 1 to 63 letters"):
        default_home(name)
    with pytest.raises(InvalidInput, match="site must be 1 to 63 letters"):
        load_home(write(tmp_path), name)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('site = "B"', "must be that of site A, got site B"),
        ('site = "../x"', "site must be"),
        ('site = "A"\n[policy]\nmax_epsilon = inf', "policy.max_epsilon must be finite"),
        ('site = "A"\n[policy]\nmax_epsilon = 0', "policy.max_epsilon must be greater than 0"),
        ('site = "A"\n[policy]\nmax_delta = 1.0', "policy.max_delta must be less than 1"),
        ('site = "A"\n[policy]\nmax_epsilom = 3', "did you mean max_epsilon?"),
        ('site = "A"\n[policy]\nallowed_signers = ["AB"]', "policy.allowed_signers.0 must be"),
        ('site = "A"\n[data."../x"]\npath = "y"', "data"),
        ('site = "A"\n[data.notes]\ntext = "y"', "data.notes.path must be given"),
        (
            'site = "A"\n[data.notes]\npath = "x.csv"\nwords = "w"',
            "data.notes.tags must be named where words is, got ''",
        ),
        (
            'site = "A"\n[data.notes]\npath = "x.csv"\ntags = "t"',
            "data.notes.tags must be absent without a words column, got 't'",
        ),
        ('site = "A"\nserver = "https://x"', "server must be"),
        ('site = "A"\n[runtime]\ndevice = "tpu"', "runtime.device must be"),
        ('site = "A"\n[runtime]\nengine = "fast"', "runtime.engine must be"),
        (
            'site = "A"\n[runtime]\nengine = "opacus"\nfused = true',
            "runtime.fused must be false with engine 'opacus', got true",
        ),
        (
            'site = "A"\n[policy]\nmax_epsilon = 2.5\nmax_job_epsilon = 3.5',
            "policy.max_job_epsilon must be at most policy.max_epsilon, 2.5, got 3.5",
        ),
        (
            'site = "A"\n[policy]\nmax_job_delta = 2e-5',
            "policy.max_job_delta must be at most policy.max_delta, 1e-05, got 2e-05",
        ),
        (
            'site = "A"\n[policy]\nlifetime = "pld-schedule"',
            "policy.schedule must be a list of jobs' sha256 with lifetime 'pld-schedule', "
            "got 0 entries",
        ),
        (
            f'site = "A"\n[policy]\nschedule = ["{"ab" * 32}"]',
            "policy.schedule must be empty with lifetime 'rdp-filter', got 1 entries",
        ),
        (
            'site = "A"\n[policy]\nlifetime = "pld-schedule"\n'
            f'schedule = ["{"ab" * 32}", "{"ab" * 32}"]',
            "policy.schedule must be of distinct jobs, got one twice",
        ),
        ('site = "A"\n[policy]\nlifetime = "prv"', "policy.lifetime must be"),
        ('site = "A"\n[policy]\napproval = "anybody"', "policy.approval must be"),
        ('site = "A"\n[policy]\nallowed_releases = ["logits"]', "policy.allowed_releases.0 must"),
        ('site = "A"\n[policy]\nallowed_bases = ["AB"]', "policy.allowed_bases.0 must be"),
        ('site = "A"\n[policy]\nmax_epsilon = 1e308', "policy.max_epsilon must be at most 1000"),
        ('site = "A"\n[policy]\nmax_epsilon = true', "policy.max_epsilon must be a number, got"),
        ('site = "A"\n[policy]\nmax_epsilon = "8"', "policy.max_epsilon must be a number, got"),
        ('site = "A"\n[policy]\nmax_job_epsilon = "3"', "policy.max_job_epsilon must be a number"),
        (
            'site = "A"\n[policy]\nallow_no_privacy = "yes"',
            "policy.allow_no_privacy must be true or false, got 'yes'",
        ),
        ('site = "A"\n[policy]\nallow_no_privacy = 1', "policy.allow_no_privacy must be true or"),
        ('site = "A"\n[policy]\nmin_population = "9"', "policy.min_population must be an integer"),
        ('site = "A"\n[policy]\nallowed_tasks = ["seqcls"]', "policy.allowed_tasks.0 must be"),
        ('site = "A"\n[runtime]\nfused = "no"', "runtime.fused must be true or false, got 'no'"),
        (
            'site = "A"\n[data.notes]\npath = "y"\nunit = "record"',
            "data.notes.unit_name must be given and not 'record', which jobs call a single row, "
            "got None for the column 'record'",
        ),
        (
            'site = "A"\n[data.notes]\npath = "y"\nunit = "patient"\nunit_name = "record"',
            "data.notes.unit_name must be given and not 'record'",
        ),
        ('site = "A"\n[policy]\nmax_minutes = 0', "policy.max_minutes must be greater than 0"),
        (
            'site = "A"\n[data.notes]\npath = "y"\nunit_name = "patient"',
            "data.notes.unit_name must be absent without a unit column, got 'patient'",
        ),
    ],
)
def test_a_faulty_file_is_refused_by_its_key(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        load_home(write(tmp_path, text), "A")
    assert says in str(caught.value)


def test_every_fault_is_told_at_once_the_one_beside_the_other(tmp_path: Path) -> None:
    text = """
site = "A"
[policy]
max_epsilon = 2.5
max_job_epsilon = 3.5
min_population = 0
approval = "anybody"
lifetime = "pld-schedule"
colour = 3
[runtime]
engine = "opacus"
fused = true
threads = -1
"""
    with pytest.raises(InvalidInput) as caught:
        load_home(write(tmp_path, text), "A")
    for key in ("max_job_epsilon", "min_population", "approval", "schedule", "colour"):
        assert f"policy.{key} must be" in str(caught.value)
    assert "runtime.threads must be" in str(caught.value)
    assert "runtime.fused must be" in str(caught.value)


def test_a_jobs_own_limits_are_those_of_the_life_unless_they_are_given(tmp_path: Path) -> None:
    policy = load_home(write(tmp_path), "A").config.policy
    assert (policy.job_epsilon, policy.job_delta) == (3.5, 1e-5)
    own = 'site = "A"\n[policy]\nmax_job_epsilon = 2.0\nmax_job_delta = 3e-6'
    policy = load_home(write(tmp_path, own), "A").config.policy
    assert (policy.job_epsilon, policy.job_delta) == (2.0, 3e-6)


def test_a_unit_is_called_by_its_column_unless_jobs_call_it_otherwise(tmp_path: Path) -> None:
    home = load_home(write(tmp_path), "A")
    assert home.data_set("notes").unit_called == "patient"
    text = WHOLE.replace('unit = "patient"', 'unit = "pat_no"\nunit_name = "patient_id"')
    notes = load_home(write(tmp_path, text), "A").data_set("notes")
    assert (notes.unit_called, notes.columns.unit) == ("patient_id", "pat_no")
    bare = load_home(write(tmp_path, 'site = "A"\n[data.notes]\npath = "y"'), "A")
    assert bare.data_set("notes").unit_called == ""


def test_a_column_called_record_is_a_unit_under_another_name(tmp_path: Path) -> None:
    text = WHOLE.replace('unit = "patient"', 'unit = "record"\nunit_name = "patient_id"')
    text = text.replace("max_epsilon = 3.5", "max_epsilon = 3\nrequired_unit = 'record'")
    home = load_home(write(tmp_path, text), "A")
    assert home.data_set("notes").unit_called == "patient_id"
    assert (home.config.policy.required_unit, home.config.policy.max_epsilon) == ("record", 3.0)


def test_an_absent_home_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="fl-client --site A init"):
        load_home(tmp_path, "A")


def test_a_data_set_that_is_not_mapped_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"maps \(notes\), got 'x-rays'"):
        load_home(write(tmp_path), "A").data_set("x-rays")
