import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from common.job import Job, SignedJob, sign_job

OPERATOR = Ed25519PrivateKey.from_private_bytes(b"\x07" * 32)


def manifest(name: str = "wards", **training: float) -> Job:
    """A small private job of two sites."""
    return Job.model_validate(
        {
            "job": {"name": name},
            "model": {"base": "builtin:minilm", "sha256": "ab" * 32},
            "adapter": {"targets": ["query"]},
            "training": {"rounds": 3, "local_steps": 4, "learning_rate": 0.5, **training},
            "privacy": {
                "mode": "site",
                "epsilon": 6.0,
                "delta": 1e-4,
                "clip_norm": 0.7,
                "sampling_rate": 0.05,
            },
            "data": {
                "name": "notes",
                "labels": ["cardiology", "surgery"],
                "population": {"A": 400, "B": 600},
            },
            "evaluation": {"data": "builtin:wards"},
        }
    )


class Jobs:
    """Signed jobs by name, and the key that signs them."""

    key = OPERATOR
    signer = OPERATOR.public_key().public_bytes_raw().hex()

    def __call__(self, name: str = "wards", **training: float) -> SignedJob:
        return sign_job(manifest(name, **training), OPERATOR)


@pytest.fixture
def signed() -> Jobs:
    return Jobs()
