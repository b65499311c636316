"""The contract that server and sites share; imports nothing of ours from outside ``common``.

Flower reports usage and asks for updates unless told otherwise before its first import, and every
package of ours imports this one first. Ray (Flower's simulation engine) has the same habit.

gRPC reads its TLS 1.2 suites once, when it is imported (which Flower does). All our certificates
are ECDSA, so a list that holds only an RSA suite leaves TLS 1.2 nothing to agree on; TLS 1.3 has
suites of its own that the list does not touch. common/link checks that we came first. gRPC's own
chatter is kept to errors.

Intel's MKL, torch's library for products of matrices, adds up in another order where a row stands
elsewhere in a batch, on its own processors with AVX-512. Its strict mode, read at its first use,
does not, and costs nothing that can be measured; without it the self-check on neighbours refuses
batches of more than one row there. Other makers' processors keep its usual way, which holds.
"""

import os
import sys
from pathlib import Path

_TLS_1_2_SUITES = "ECDHE-RSA-AES256-GCM-SHA384"

REFUSES_TLS_1_2 = (
    "grpc" not in sys.modules or os.environ.get("GRPC_SSL_CIPHER_SUITES") == _TLS_1_2_SUITES
)

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["FLWR_DISABLE_UPDATE_CHECK"] = "1"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["GRPC_SSL_CIPHER_SUITES"] = _TLS_1_2_SUITES
os.environ.setdefault("GRPC_VERBOSITY", "error")


def _is_intel() -> bool:
    """Whether Linux says that this processor is one of Intel's."""
    try:
        return b"GenuineIntel" in Path("/proc/cpuinfo").read_bytes()
    except OSError:
        return False


if _is_intel():
    os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")
