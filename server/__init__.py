"""The coordinator: sees noised adapter deltas, never a record."""

import common  # noqa: F401  -- turns Flower's telemetry off before Flower's first import
