"""The contract that server and sites share; imports nothing of ours from outside ``common``.

Flower reports usage and asks for updates unless told otherwise before its first import, and every
package of ours imports this one first. Ray (Flower's simulation engine) has the same habit.
"""

import os

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["FLWR_DISABLE_UPDATE_CHECK"] = "1"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
