"""Aggregation rules on Flower's strategy interface, one file each.

A new one is a module and a line in ``STRATEGIES``.
"""

from collections.abc import Callable

from flwr.serverapp.strategy import Strategy

from server.strategies.fedavg import Ask, FedAvg, Read

STRATEGIES: dict[str, Callable[[Ask, Read], Strategy]] = {"fedavg": FedAvg}
