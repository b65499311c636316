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


def test_what_is_not_said_is_the_cautious_default(tmp_path: Path) -> None:
    policy = load_home(write(tmp_path, 'site = "A"'), "A").config.policy
    assert policy.allowed_signers == ()
    assert (policy.max_epsilon, policy.max_delta) == (8.0, 1e-5)
    assert policy.allow_no_privacy is False


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
        ('site = "A"\nserver = "https://x"', "server must be"),
        ('site = "A"\n[runtime]\ndevice = "tpu"', "runtime.device must be"),
    ],
)
def test_a_faulty_file_is_refused_by_its_key(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        load_home(write(tmp_path, text), "A")
    assert says in str(caught.value)


def test_an_absent_home_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="fl-client --site A init"):
        load_home(tmp_path, "A")


def test_a_data_set_that_is_not_mapped_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"maps \(notes\), got 'x-rays'"):
        load_home(write(tmp_path), "A").data_set("x-rays")
