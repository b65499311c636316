"""The coordinator: sees noised adapter deltas, never a record.

gRPC's core says why a TLS handshake failed only when it is not told to keep to errors, and it reads
that when it is imported: the server, which turns those lines into words (server/handshakes.py),
lifts what ``common`` set for every other process.
"""

import os
import sys

import common  # noqa: F401  -- turns Flower's telemetry off before Flower's first import

HEARS_HANDSHAKES = "grpc" not in sys.modules

if os.environ.get("GRPC_VERBOSITY", "").lower() == "error":
    del os.environ["GRPC_VERBOSITY"]
