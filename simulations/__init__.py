"""Many sites on one machine, running the very same two apps."""

import common  # noqa: F401  -- turns Flower's telemetry off before Flower's first import
