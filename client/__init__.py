"""A site: the only package that ever sees a record."""

import common  # noqa: F401  -- turns Flower's telemetry off before Flower's first import
