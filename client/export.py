"""A finished job's adapter at a site: fetched, checked, kept, tried.

The signed manifest in the site's account says what the adapter must be: base by content hash, and
from both the tensors and so the length. Its numbers are the server's word: the closing message
brought their sha256, or, to a site that was away, nothing but the fetch itself did.

Not covered: whether the server aggregated honestly.
"""

import json
import os
import secrets
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from safetensors import SafetensorError

from client.account import has_run
from client.calls import fetch, link_config
from client.config import SiteHome
from client.identity import read_identity
from client.outbox import JobRow, Outbox
from common.adapter import (
    LoadedAdapter,
    Vector,
    load_adapter,
    vector_sha256,
)
from common.data.readers import normalise
from common.errors import InvalidInput, StorageFailed, UpdateRejected
from common.files import make_folder, read_file, sync_folder, write_file
from common.job import Job, parse_signed_job
from common.model import require_base
from common.saved import read_adapter, save_adapter
from common.tasks import task_of
from common.tasks.batches import physical_batches
from common.tasks.guess import Guess

NOTE_NAME = "veiltune.json"
_MAX_NOTE_BYTES = 4 << 20

Source = Literal["closing message", "server at fetch"]


@dataclass(frozen=True, slots=True)
class Kept:
    """``veiltune.json`` of a kept adapter.

    Attributes:
        job_sha256: whose adapter it is.
        labels: in the order of the head's outputs.
        adapter_sha256: of the (P,) little-endian float32 vector.
        hash_from: who said that this is the right hash, and when.
    """

    job_sha256: str
    labels: tuple[str, ...]
    adapter_sha256: str
    hash_from: Source


def fetch_adapter(home: SiteHome, wanted: str) -> tuple[Path, Kept]:
    """Fetch the final adapter of a job, check it and keep it under ``adapters/``.

    Args:
        home: the site's.
        wanted: the job's name, or the first characters of its sha256.

    Raises:
        InvalidInput: no such job in this site's account, or a base that is not here.
        JobRefused: the base here is another than the job's.
        LinkDown: the server cannot be reached.
        Refusal: it has no adapter of that job.
        UpdateRejected: what came is not the job's final adapter.
        StorageFailed: it cannot be kept.
    """
    outbox = _account(home)
    row = outbox.job(wanted)
    job = _job(row)
    identity = read_identity(home)
    identity.check()
    adapter = _load(home, job)
    data = fetch(link_config(home, identity), job.sha256, 4 * adapter.table.size)
    vector = checked(data, adapter.table.size, row.final_sha256)
    source: Source = "closing message" if row.final_sha256 else "server at fetch"
    kept = Kept(job.sha256, job.data.labels, vector_sha256(vector), source)
    folder = _keep(home, job, adapter, vector, kept)
    if row.state == "running":  # the site was away at the close
        outbox.close_job(job.sha256, "finished", "")
    return folder, kept


def checked(data: bytes, size: int, final_sha256: str) -> Vector:
    """The fetched bytes as a vector, (P,).

    Raises:
        UpdateRejected: another length, numbers that are not finite, or another hash than the
            closing message's (when there was one).
    """
    if len(data) != 4 * size:
        raise UpdateRejected(f"adapter must have {4 * size} bytes, got {len(data)}")
    vector = np.frombuffer(data, dtype="<f4").astype(np.float32)
    wrong = size - int(np.count_nonzero(np.isfinite(vector)))
    if wrong:
        raise UpdateRejected(f"adapter must be finite, got {wrong} of {size} not finite")
    found = vector_sha256(vector)
    if final_sha256 and found != final_sha256:
        raise UpdateRejected(
            f"adapter sha256 must be the one that closed the job, {final_sha256}, got {found}"
        )
    return vector


def predict(home: SiteHome, wanted: str, text: str) -> list[Guess]:
    """What a kept adapter says of ``text``: each label, best first, or each entity in its order.

    Args:
        home: the site's.
        wanted: the job's name, or the first characters of its sha256.
        text: normalised here as training texts are. Sensitive.

    Raises:
        InvalidInput: no such job, no adapter kept, one that was changed since, or no text.
        JobRefused: the base here is another than the job's.
    """
    job = _job(_account(home).job(wanted))
    text = normalise(text)
    if not text:
        raise InvalidInput("text must hold something, got nothing")
    adapter = _load_kept(home, job)
    task = task_of(job)
    record = task.question(text, job)
    (example,) = task.encode(adapter.tokenizer, [record], job)
    (batch,) = physical_batches([example], 1, adapter.pad_id, adapter.device)
    with torch.inference_mode():
        row = task.probabilities(adapter.model.eval(), batch)[0].cpu()
    return task.answer(record, example, row, job)


def as_json(guess: Guess) -> dict[str, object]:
    """A guess as ``predict --json`` prints it; an entity has its text besides."""
    found: dict[str, object] = {"label": guess.label, "probability": guess.probability}
    return found | ({"text": guess.text} if guess.text else {})


def folder_of(home: SiteHome, name: str, job_sha256: str) -> Path:
    """Where a job's adapter is kept: under its name, or a longer one if another job has that."""
    folder = home.folder / "adapters" / name
    note = _read_note(folder)
    if note is None or note.job_sha256 == job_sha256:
        return folder
    return folder.with_name(f"{name}-{job_sha256[:12]}")


def _account(home: SiteHome) -> Outbox:
    if not has_run(home):
        raise InvalidInput(
            f"job must be one that site {home.site} takes part in, got a site that has run none"
        )
    return Outbox.of(home)


def _job(row: JobRow) -> Job:
    job = parse_signed_job(row.manifest).job
    if job.sha256 != row.sha256:
        raise StorageFailed(f"manifest must be that of job {row.sha256[:12]}, got another's")
    return job


def _load(home: SiteHome, job: Job) -> LoadedAdapter:
    folder = require_base(job, home.models, download=False)
    return load_adapter(job, folder, home.config.runtime.device)


def _keep(home: SiteHome, job: Job, adapter: LoadedAdapter, vector: Vector, kept: Kept) -> Path:
    """Write the folder aside, make it durable, then give it its name."""
    folder = folder_of(home, job.job.name, job.sha256)
    make_folder(folder.parent)
    aside = folder.with_name(f".{folder.name}.{secrets.token_hex(8)}.tmp")
    try:
        save_adapter(adapter, vector, aside, job.model.base)
        write_file(aside / NOTE_NAME, json.dumps(asdict(kept), indent=2).encode(), mode=0o644)
        _sync(aside)
        _rename(aside, folder)
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise StorageFailed(f"adapter must be written to {folder}, got: {reason}") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return folder


def _sync(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    sync_folder(folder)


def _rename(aside: Path, folder: Path) -> None:
    """Put the new folder in place of an older one, which a rename alone cannot."""
    old = aside.with_suffix(".old")
    if folder.exists():
        folder.rename(old)
    aside.rename(folder)
    sync_folder(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def _read_note(folder: Path) -> Kept | None:
    """What a kept adapter says of itself; ``None`` where nothing that we kept lies."""
    try:
        note = json.loads(read_file(folder / NOTE_NAME, max_bytes=_MAX_NOTE_BYTES))
        return Kept(**{**note, "labels": tuple(note["labels"])})
    except (InvalidInput, ValueError, TypeError, KeyError, RecursionError):
        return None


def _load_kept(home: SiteHome, job: Job) -> LoadedAdapter:
    """The base with the kept adapter on it, once that is found to be the one that was kept."""
    folder = folder_of(home, job.job.name, job.sha256)
    note = _read_note(folder)
    if note is None or note.job_sha256 != job.sha256:
        raise InvalidInput(
            f"adapter of job {job.job.name} must be kept here, got none in {folder} "
            f"(fl-client --site {home.site} fetch {job.job.name})"
        )
    adapter = _load(home, job)
    vector = read_adapter(adapter, folder)
    found = vector_sha256(vector)
    if found != note.adapter_sha256:
        raise InvalidInput(
            f"kept adapter must have sha256 {note.adapter_sha256[:16]}..., got {found[:16]}... "
            f"(fetch it again: fl-client --site {home.site} fetch {job.job.name})"
        )
    adapter.write(vector)
    return adapter
