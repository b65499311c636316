import gzip
import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from common.data import catalogue, wards
from common.data.catalogue import RemoteFile, fetch, load, parse_ade
from common.data.records import ColumnMap, Record
from common.errors import InvalidInput

BODY = b"text,category\nhello,greeting\n"
BODY_SHA256 = hashlib.sha256(BODY).hexdigest()


@pytest.fixture
def source(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[tuple[str, list[str]]]:
    """A web server with one file, and the paths that were asked of it."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(BODY)

        def log_message(self, format: str, *args: object) -> None:
            pass

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/train.csv", asked
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_public_file_is_fetched_once(source: tuple[str, list[str]]) -> None:
    url, asked = source
    remote = RemoteFile(url, BODY_SHA256, len(BODY))
    assert fetch(remote).read_bytes() == BODY
    assert fetch(remote).read_bytes() == BODY
    assert asked == ["/train.csv"]


def test_a_damaged_cache_is_fetched_again(source: tuple[str, list[str]]) -> None:
    url, asked = source
    remote = RemoteFile(url, BODY_SHA256, len(BODY))
    fetch(remote).write_bytes(b"other")
    assert fetch(remote).read_bytes() == BODY
    assert len(asked) == 2


def test_another_file_than_the_pinned_one_is_refused_and_not_kept(
    source: tuple[str, list[str]], tmp_path: Path
) -> None:
    url, _ = source
    with pytest.raises(InvalidInput, match="must have sha256 00000"):
        fetch(RemoteFile(url, "0" * 64, len(BODY)))
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_hf_hub_offline_asks_nobody(
    source: tuple[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, asked = source
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InvalidInput, match=r"got HF_HUB_OFFLINE: put the set in .* VEILTUNE_DATA"):
        fetch(RemoteFile(url, BODY_SHA256, len(BODY)))
    assert not asked


def test_an_unreachable_source_is_one_plain_sentence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    remote = RemoteFile("http://127.0.0.1:9/train.csv", BODY_SHA256, len(BODY))
    with pytest.raises(InvalidInput, match=r"127\.0\.0\.1:9/train\.csv must be reachable, got "):
        fetch(remote)


def test_veiltune_data_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "banking77").mkdir()
    row = json.dumps({"text": "my own row", "label": "mine", "y": 0})
    (tmp_path / "banking77" / "test.jsonl.gz").write_bytes(gzip.compress(row.encode()))
    monkeypatch.setenv("VEILTUNE_DATA", str(tmp_path))
    assert load("banking77", "test") == [Record("my own row", "mine")]


def test_a_path_is_read_as_a_file(tmp_path: Path) -> None:
    path = tmp_path / "notes.csv"
    path.write_text("note,label\na,b\n")
    assert load(str(path), "test", ColumnMap(text="note")) == [Record("a", "b")]


def test_an_unknown_name_or_split_is_answered_with_the_known_ones() -> None:
    with pytest.raises(InvalidInput, match=r"got 'bankng77'") as caught:
        load("bankng77")
    assert all(name in str(caught.value) for name in catalogue.names())
    with pytest.raises(InvalidInput, match="split of banking77 must be one of train, test, got"):
        load("banking77", "dev")
    with pytest.raises(InvalidInput, match="split must be one of train, dev, test"):
        load("builtin:wards", "all")


def test_the_wards_have_all_three_splits() -> None:
    notes = wards.generate("dev")
    assert load("builtin:wards", "dev") == [replace(n, words=(), tags=()) for n in notes]
    by_word = load("builtin:wards", "dev", ColumnMap(words="words", tags="tags"))
    assert by_word == [replace(note, label="") for note in notes]


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("split", "rows", "diseases"), [("train", 5424, 5134), ("dev", 923, 787), ("test", 940, 960)]
)
def test_the_disease_set_has_its_splits_and_as_many_mentions_as_its_paper_says(
    split: str, rows: int, diseases: int
) -> None:
    if catalogue.local_path("ncbi_disease", split) is None:
        pytest.skip("ncbi_disease is neither in VEILTUNE_DATA nor in ../shared/data")
    records = load("ncbi_disease", split)
    tags = [tag for record in records for tag in record.tags]
    assert (len(records), tags.count("B-Disease")) == (rows, diseases)
    assert set(tags) == {"O", "B-Disease", "I-Disease"}


def test_the_ade_files_become_records_by_document() -> None:
    # Lines in the corpus' own layout; the first sentence has two relations, hence two lines.
    positive = (
        "11|Rash after penicillin.|Rash|0|4|penicillin|11|21\n"
        "11|Rash after penicillin.|Rash|0|4|penicillin|11|21\n"
    )
    negative = "12 NEG No | reaction was seen.\n13 NEG Rash after penicillin.\n"
    assert list(parse_ade(positive, negative)) == [
        Record("Rash after penicillin.", "adverse_event", "11"),
        Record("No | reaction was seen.", "none", "12"),
    ]


@pytest.mark.realdata
def test_real_sets_have_the_rows_that_their_papers_report() -> None:
    if catalogue.local_path("banking77", "test") is None:
        pytest.skip("neither VEILTUNE_DATA nor ../shared/data holds banking77")
    train, test = load("banking77"), load("banking77", "test")
    assert (len(train), len(test)) == (10_003, 3_080)  # Casanueva et al. 2020, Table 1
    assert len({record.label for record in train}) == 77
    ade = load("ade_corpus_v2") + load("ade_corpus_v2", "test")
    assert (
        sum(record.label == "adverse_event" for record in ade) == 4_271
    )  # distinct ones of 6,821 relations
    assert not {r.unit for r in load("ade_corpus_v2")} & {
        r.unit for r in load("ade_corpus_v2", "test")
    }
    assert load("neiss_fireworks")[0].sex in ("Male", "Female")
