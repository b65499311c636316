"""Loading a base with a task's head on it, from pinned safetensors alone."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from common.job import Job
from common.model import load_config


def load_with_head(auto: Any, folder: Path, job: Job) -> tuple[nn.Module, frozenset[str]]:  # noqa: ANN401
    """The base with a head of the job's labels, and the parameters it has no weights for.

    Args:
        auto: transformers' class for the task.
        folder: the base's.
        job: names labels and dtype.
    """
    dtype = getattr(torch, job.model.dtype)
    config = load_config(folder, num_labels=len(job.data.labels))
    model, info = auto.from_pretrained(
        folder,
        config=config,
        local_files_only=True,
        trust_remote_code=False,
        use_safetensors=True,
        dtype=dtype,
        # bf16 on a CPU spends most of a step in SDPA's backward pass.
        attn_implementation="eager" if dtype is torch.bfloat16 else None,
        # A head of other labels than the job's counts as one that is not there.
        ignore_mismatched_sizes=True,
        output_loading_info=True,
    )
    mismatched = {name for name, *_ in info["mismatched_keys"]}
    return model, frozenset(mismatched | set(info["missing_keys"]))
