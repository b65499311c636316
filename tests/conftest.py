"""Shared by all tests. Our packages come first: gRPC and Flower read their settings on import."""

import common  # noqa: F401
