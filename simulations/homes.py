"""Homes of simulated sites: each holds its own rows and nothing of the others'."""

from collections.abc import Sequence
from pathlib import Path

import tomli_w

from client.config import SiteConfig, SiteHome, load_home
from client.policy import releases_of
from common.config import RECORD, parse
from common.data.records import Record
from common.data.writers import write_records
from common.files import make_folder, write_file
from common.job import Job

_ROWS = "records.jsonl"


def write_home(
    folder: Path,
    site: str,
    records: Sequence[Record],
    job: Job,
    *,
    signer: str,
    server: str = "127.0.0.1:8443",
    threads: int = 0,
) -> SiteHome:
    """Write a site's rows and a ``site.toml`` that allows just this job.

    Args:
        folder: the home; made if it is not there.
        site: its name.
        records: its own.
        job: whose data name is mapped and whose epsilon and delta are the caps.
        signer: the operator's Ed25519 key, hex.
        server: where the link is, for sites that are processes.
        threads: for torch; 0 leaves it to torch.
    """
    make_folder(folder)
    columns = write_records(folder / _ROWS, records, tagged=job.job.task == "token-cls")
    mapping = {"path": _ROWS, "unit": columns.unit, "words": columns.words, "tags": columns.tags}
    if job.metrics is not None and columns.group:
        mapping["group"] = columns.group
    if columns.unit and job.privacy.unit != RECORD:
        mapping["unit_name"] = job.privacy.unit
    policy: dict[str, object] = {
        "allowed_signers": [signer],
        "allow_no_privacy": not job.is_private,
        "allowed_releases": list(releases_of(job)),
    }
    if job.privacy.epsilon is not None and job.privacy.delta is not None:
        policy |= {
            "max_epsilon": job.privacy.epsilon,
            "max_delta": job.privacy.delta,
            # Just this job, fixed beforehand: so its own accounting is the life's as well.
            "lifetime": "pld-schedule",
            "schedule": [job.sha256],
        }
    config = {
        "site": site,
        "server": server,
        "policy": policy,
        "data": {job.data.name: mapping},
        "runtime": {"threads": threads},
    }
    parse(SiteConfig, config, "site.toml")
    write_file(folder / "site.toml", tomli_w.dumps(config).encode())
    return load_home(folder, site)
