import json
import math
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from common import result as module
from common.errors import InvalidInput, StorageFailed
from common.result import Result, read_result, write_result

SCHEMA = Path(__file__).parents[3] / "docs" / "result.schema.json"


def example() -> dict[str, Any]:
    """Typed by hand, as the file's users read it; no code of ours made it."""
    return {
        "job_sha256": "ab" * 32,
        "name": "discharge",
        "task": "seq-cls",
        "grid": "link",
        "private": True,
        "sites": [{"name": "A", "epsilon": 2.5, "delta": 1e-5, "steps": 16, "counts": 0}],
        "start": {"accuracy": 0.125, "macro_f1": 0.0625, "entity_f1": None},
        "rounds": [
            {
                "round": number,
                "accuracy": 0.25 + 0.125 * number,
                "macro_f1": 0.5,
                "entity_f1": None,
                "epsilon": 1.25 * number,
                "bytes_up": 4096 * number,
                "bytes_down": 8192 * number,
                "seconds": 0.5,
            }
            for number in (1, 2)
        ],
        "kept_round": None,
        "final": {
            "accuracy": 0.5,
            "macro_f1": 0.375,
            "entity_f1": None,
            "entities": None,
            "classes": [
                {"label": "ward, A", "precision": 0.5, "recall": 1, "f1": 0.625, "support": 7}
            ],
        },
        "privacy": {
            "mode": "site",
            "unit": "record",
            "unit_cap": None,
            "neighbours": "add-or-remove-one",
            "sampler": "poisson",
            "sampling_rate": 0.05,
            "clip_norm": 0.75,
            "noise_multiplier": 1.25,
            "local_steps": 8,
            "delta": 1e-5,
            "accountant": "pld",
            "accountant_version": "dp-accounting 0.6.0",
            "seeded": False,
            "metrics_noise_multiplier": None,
        },
        "metrics": None,
        "seconds": 12.5,
        "adapter_sha256": "cd" * 32,
        "vector_sha256": "ef" * 32,
    }


def without_privacy() -> dict[str, Any]:
    data = example()
    data["private"] = False
    data["sites"][0] |= {"epsilon": None, "delta": None}
    for row in data["rounds"]:
        row["epsilon"] = None
    data["privacy"] |= {"mode": "none", "clip_norm": None, "noise_multiplier": 0, "delta": None}
    return data


def of_words() -> dict[str, Any]:
    data = example() | {"task": "token-cls", "kept_round": 1}
    data["start"] |= {"accuracy": None, "entity_f1": 0.0625}
    for row in data["rounds"]:
        row |= {"accuracy": None, "entity_f1": 0.125}
    data["final"] |= {
        "accuracy": None,
        "entity_f1": 0.125,
        "entities": {
            "precision": 0.25,
            "recall": 0.0625,
            "f1": 0.125,
            "strict_f1": 0.0625,
            "words": 70,
            "words_cut": 3,
        },
    }
    return data


def put(folder: Path, data: object) -> Path:
    path = folder / "result.json"
    path.write_text(json.dumps(data))
    return path


def test_what_is_written_is_what_a_reader_gets(tmp_path: Path) -> None:
    result = read_result(put(tmp_path, example()))
    write_result(result, tmp_path / "again.json")
    assert json.loads((tmp_path / "again.json").read_text()) == example()


@pytest.mark.parametrize(
    "data", [example(), without_privacy(), of_words()], ids=["private", "none", "words"]
)
def test_a_result_fits_the_published_schema_by_an_independent_validator(
    data: dict[str, Any], tmp_path: Path
) -> None:
    schema = json.loads(SCHEMA.read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    write_result(read_result(put(tmp_path, data)), tmp_path / "out.json")
    jsonschema.validate(json.loads((tmp_path / "out.json").read_text()), schema)


def test_a_result_of_before_entities_and_patience_is_still_read(tmp_path: Path) -> None:
    old = example()
    del old["kept_round"], old["final"]["entities"], old["final"]["entity_f1"]
    del old["start"]["entity_f1"], old["rounds"][0]["entity_f1"], old["rounds"][1]["entity_f1"]
    assert read_result(put(tmp_path, old)) == read_result(put(tmp_path, example()))


def test_a_result_of_before_bytes_down_is_written_as_it_was(tmp_path: Path) -> None:
    for rounds in ((0, 1), (0,)):  # the second: closed by two versions
        old = example()
        for i in rounds:
            del old["rounds"][i]["bytes_down"]
        result = read_result(put(tmp_path, old))
        assert (result.bytes_up, result.bytes_down) == (3 * 4096, None)
        write_result(result, tmp_path / "again.json")
        assert json.loads((tmp_path / "again.json").read_text()) == old
    assert read_result(put(tmp_path, example())).bytes_down == 3 * 8192


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"task": "seq-cls"}, "entities and entity_f1 must be null with task 'seq-cls'"),
        ({"kept_round": 3}, "kept_round must be one of the rounds, got 3"),
    ],
)
def test_a_result_says_what_its_task_is_judged_by(
    change: dict[str, Any], named: str, tmp_path: Path
) -> None:
    with pytest.raises(InvalidInput, match=named):
        read_result(put(tmp_path, of_words() | change))
    with pytest.raises(InvalidInput, match="must be given with task 'token-cls'"):
        read_result(put(tmp_path, example() | {"task": "token-cls"}))


def test_the_schema_refuses_a_key_that_it_does_not_know() -> None:
    with pytest.raises(jsonschema.ValidationError, match="loss"):
        jsonschema.validate(example() | {"loss": 0.1}, json.loads(SCHEMA.read_text()))


def test_the_published_schema_is_that_of_the_models() -> None:
    assert SCHEMA.read_text() == module.schema(), (
        "write common.result.schema() to docs/result.schema.json"
    )


@pytest.mark.parametrize(
    ("where", "value", "named"),
    [
        ("seconds", "12.5", "seconds must be a number"),
        ("seconds", -1.0, "seconds must be at least 0"),
        ("private", "yes", "private must be true or false"),
        ("private", False, "private must be True"),
        ("adapter_sha256", "CD" * 32, "adapter_sha256 must be"),
        ("sites.0.name", "../x", "sites.0.name must be"),
        ("sites.0.steps", 1.5, "sites.0.steps must be an integer"),
        ("sites.0.epsilon", None, "sites.A.epsilon must be given"),
        ("rounds.1.epsilon", None, "rounds.2.epsilon must be given"),
        ("rounds.1.accuracy", 1.01, "rounds.1.accuracy must be at most 1"),
        ("rounds.1.round", 0, "rounds.1.round must be at least 1"),
        ("rounds.1.round", 1, "rounds must be in ascending order"),
        ("final.loss", 0.1, "final.loss must be a known key"),
        ("privacy.noise_multiplier", 0.0, "privacy.noise_multiplier must be given"),
        ("privacy.clip_norm", None, "privacy.clip_norm must be given"),
        ("privacy.seeded", True, "private must be False"),
    ],
)
def test_a_wrong_field_is_named(where: str, value: object, named: str, tmp_path: Path) -> None:
    data = example()
    *path, last = where.split(".")
    at: Any = data
    for part in path:
        at = at[int(part)] if part.isdigit() else at[part]
    at[last] = value
    with pytest.raises(InvalidInput, match=named):
        read_result(put(tmp_path, data))


def test_two_sites_or_two_classes_of_one_name_are_refused(tmp_path: Path) -> None:
    for section, rows in (("sites", "sites"), ("final", "classes")):
        data = example()
        table = data if section == "sites" else data[section]
        table[rows] = table[rows] * 2
        with pytest.raises(InvalidInput, match="must be distinct"):
            read_result(put(tmp_path, data))


def test_an_epsilon_beside_mode_none_is_refused(tmp_path: Path) -> None:
    data = without_privacy()
    data["sites"][0]["epsilon"] = 3.0
    with pytest.raises(InvalidInput, match=r"sites\.A\.epsilon must be null"):
        read_result(put(tmp_path, data))


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{", '{"seconds": NaN}', '{"seconds": 1, "seconds": 2}', "[" * 200_000, "\x00"],
)
def test_what_is_not_one_json_object_is_one_clear_error(text: str, tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_text(text)
    with pytest.raises(InvalidInput, match=r"result.json must be"):
        read_result(path)


def test_an_oversized_file_is_refused_before_it_is_parsed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_RESULT_BYTES", 100)
    with pytest.raises(InvalidInput, match="at most 100 bytes"):
        read_result(put(tmp_path, example()))


def test_a_folder_that_is_missing_is_told_in_one_sentence(tmp_path: Path) -> None:
    result = Result.model_validate(example())
    with pytest.raises(StorageFailed, match="the folder is missing"):
        write_result(result, tmp_path / "none" / "result.json")
    with pytest.raises(InvalidInput, match="must be a readable file"):
        read_result(tmp_path / "none" / "result.json")


def test_a_sites_epsilon_comes_from_its_own_steps() -> None:
    privacy = Result.model_validate(example()).privacy
    few, many = (module.site_result("A", steps, privacy).epsilon for steps in (8, 80))
    assert few is not None
    assert many is not None
    assert 0 < few < many < math.inf
    assert module.site_result("A", 0, privacy).epsilon == 0


def test_without_noise_a_site_has_no_epsilon() -> None:
    privacy = Result.model_validate(without_privacy()).privacy
    line = module.site_result("A", 80, privacy)
    assert (line.epsilon, line.delta) == (None, None)
