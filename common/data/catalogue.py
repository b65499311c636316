"""Data sets by name: the embedded wards, public sets, or a path to a file.

A named set is read from ``VEILTUNE_DATA``, else from ``../shared/data`` beside the checkout, as
``NAME/SPLIT.jsonl.gz``; else it is fetched once from its public source, checked against the sha256
pinned here, and kept in the user's cache folder. Nothing is fetched with ``HF_HUB_OFFLINE=1``.

Sources, with sha256 as Hugging Face's own loading scripts recorded them
(huggingface/datasets 040102f, datasets/{banking77,ade_corpus_v2}/dataset_infos.json):
banking77, Casanueva et al. (2020), https://arxiv.org/abs/2003.04807, CC BY 4.0;
ade_corpus_v2, Gurulingappa et al. (2012), https://doi.org/10.1016/j.jbi.2012.04.008.

Not covered: a source for cfpb_complaints and neiss_fireworks (their agencies serve queries, not
files with a hash) and for ncbi_disease (Dogan et al. 2014, CC BY 4.0,
https://doi.org/10.1016/j.jbi.2013.12.006; no hash of its files is at hand); the exact train/test
division of a local ade_corpus_v2: fetched, it is divided by a hash of the document, so numbers from
the two differ a little.
"""

import hashlib
import os
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from common.data import wards
from common.data.readers import normalise, read_records
from common.data.records import ColumnMap, Record
from common.errors import InvalidInput
from common.files import make_folder, write_file

TIMEOUT_S = 15.0

_POLYAI = (
    "https://raw.githubusercontent.com/PolyAI-LDN/task-specific-datasets/"
    "9d081458ff52e53cf7e848f414e6e9344e4e6696/banking_data/"
)
_ADE = "https://raw.githubusercontent.com/trunghlt/AdverseDrugReaction/master/ADE-Corpus-V2/"


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A public file whose content is known in advance."""

    url: str
    sha256: str
    size: int  # bytes


@dataclass(frozen=True, slots=True)
class DataSet:
    """A named set: the columns of its local files, its splits, and where else it is found."""

    columns: ColumnMap
    splits: tuple[str, ...] = ("train", "test")
    fetch: Callable[[str], list[Record]] | None = None


def names() -> tuple[str, ...]:
    """Every name that ``load`` knows, sorted."""
    return ("builtin:wards", *sorted(_SETS))


def load(name: str, split: str = "train", columns: ColumnMap | None = None) -> list[Record]:
    """The records of one split of a named set, or of a file.

    Args:
        name: one of ``names()``, or a path to a file in a format of ``read_records``.
        split: train, dev or test; a file is whole and takes no notice of it.
        columns: for a file; named sets know theirs. Of the wards, which have both, words and tags
            are given where ``columns`` names them, else labels.

    Raises:
        InvalidInput: an unknown name or split, a bad file, or a set that is neither here nor can
            be fetched.
    """
    if split not in wards.SPLITS:
        raise InvalidInput(f"split must be one of {', '.join(wards.SPLITS)}, got {split!r}")
    if name == "builtin:wards":
        by_word = columns is not None and bool(columns.words)
        return [_as_asked(record, by_word=by_word) for record in wards.generate(split)]
    if name not in _SETS:
        path = Path(name).expanduser()
        if not path.is_file():
            raise InvalidInput(
                f"data must be a path to a file or one of {', '.join(names())}, got {name!r}"
            )
        return list(read_records(path, columns))
    known = _SETS[name]
    if split not in known.splits:
        raise InvalidInput(
            f"split of {name} must be one of {', '.join(known.splits)}, got {split!r}"
        )
    if local := local_path(name, split):
        return list(read_records(local, known.columns))
    if known.fetch is None:
        raise InvalidInput(
            f"{name} must be in the folder that VEILTUNE_DATA names, as {name}/{split}.jsonl.gz "
            "(it has no public file to fetch), got no such file"
        )
    return known.fetch(split)


def _as_asked(record: Record, *, by_word: bool) -> Record:
    """A note with its department, or with its words and their tags."""
    return replace(record, label="") if by_word else replace(record, words=(), tags=())


def local_path(name: str, split: str) -> Path | None:
    """The file of a named set on this machine, if it is there."""
    checkout = Path(__file__).resolve().parents[2]
    is_checkout = (checkout / "pyproject.toml").is_file()  # not so once installed
    folders = [checkout.parent / "shared" / "data"] if is_checkout else []
    if given := os.environ.get("VEILTUNE_DATA"):
        folders.insert(0, Path(given).expanduser())
    stems = ("dev", "devel") if split == "dev" else (split,)
    found = (folder / name / f"{stem}.jsonl.gz" for folder in folders for stem in stems)
    return next((path for path in found if path.is_file()), None)


def fetch(remote: RemoteFile) -> Path:
    """Fetch a file into the cache, or find it there.

    Raises:
        InvalidInput: offline, or the file is not the one that is pinned.
        StorageFailed: the cache folder cannot be written.
    """
    base = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    name = remote.url.rsplit("/", 1)[1]
    path = base / "veiltune" / "data" / remote.sha256[:16] / name
    if path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == remote.sha256:
        return path
    data = _download(remote)
    found = hashlib.sha256(data).hexdigest()
    if found != remote.sha256:
        raise InvalidInput(f"{remote.url} must have sha256 {remote.sha256}, got {found}")
    make_folder(path.parent)
    write_file(path, data)
    return path


def _download(remote: RemoteFile) -> bytes:
    advice = "put the set in the folder that VEILTUNE_DATA names, or go online"
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        raise InvalidInput(f"{remote.url} must be fetched, got HF_HUB_OFFLINE: {advice}")
    try:
        with urllib.request.urlopen(remote.url, timeout=TIMEOUT_S) as reply:
            return bytes(reply.read(remote.size + 1))
    except (OSError, urllib.error.URLError) as error:
        reason = getattr(error, "reason", None) or error
        raise InvalidInput(f"{remote.url} must be reachable, got {reason}: {advice}") from error


_BANKING77 = {
    "train": RemoteFile(
        _POLYAI + "train.csv",
        "b06e26ac675513959a63135f11b94ea7786ed02da65db93a5650d8838cbc664b",
        839_073,
    ),
    "test": RemoteFile(
        _POLYAI + "test.csv",
        "d12d6e3bc4c3103966ae786dc435913c0c563dfa328f5a3646d0e62cfeeb474d",
        239_961,
    ),
}
_ADE_POSITIVE = RemoteFile(
    _ADE + "DRUG-AE.rel",
    "542cdc483ccc94927762eaf2c9a8ecac49a6c10037dda2895be6a6e20160f75a",
    1_423_024,
)
_ADE_NEGATIVE = RemoteFile(
    _ADE + "ADE-NEG.txt",
    "8f506c159042ce354fbf26981dc39971dde8f09b1158d94106eab1e516e53fcf",
    2_308_469,
)


def _fetch_banking77(split: str) -> list[Record]:
    return list(read_records(fetch(_BANKING77[split]), ColumnMap(label="category")))


def _fetch_ade(split: str) -> list[Record]:
    texts = (fetch(_ADE_POSITIVE).read_text("utf-8"), fetch(_ADE_NEGATIVE).read_text("utf-8"))
    return [record for record in parse_ade(*texts) if _is_test(record.unit) == (split == "test")]


def parse_ade(positive: str, negative: str) -> Iterator[Record]:
    """The corpus' own two files as records, each sentence once; the unit is the PubMed id.

    Args:
        positive: DRUG-AE.rel, ``id|sentence|effect|...``, a line for each relation.
        negative: ADE-NEG.txt, ``id NEG sentence``.

    A sentence in both files is about an adverse event.
    """
    rows = [(*line.split("|", 2)[:2], "adverse_event") for line in positive.splitlines() if line]
    for line in filter(None, negative.splitlines()):
        unit, _, text = line.split(" ", 2)
        rows.append((unit, text, "none"))
    seen = set()
    for unit, text, label in rows:
        text = normalise(text)
        if text not in seen:
            seen.add(text)
            yield Record(text, label, unit)


def _is_test(unit: str) -> bool:
    """One document in five, by hash."""
    return hashlib.sha256(unit.encode()).digest()[0] % 5 == 0


_SETS: dict[str, DataSet] = {
    "ade_corpus_v2": DataSet(ColumnMap(unit="doc"), fetch=_fetch_ade),
    "banking77": DataSet(ColumnMap(), fetch=_fetch_banking77),
    "cfpb_complaints": DataSet(ColumnMap()),
    "ncbi_disease": DataSet(
        ColumnMap(words="tokens", tags="tags"), splits=("train", "dev", "test")
    ),
    "neiss_fireworks": DataSet(ColumnMap(sex="sex", age="age")),
}
