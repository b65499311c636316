"""Aggregation rules on Flower's strategy interface, one file a method.

A new one is a module, a line in ``STRATEGIES`` and one in ``common/methods.py``.
"""

from server.strategies.base import LoraStrategy
from server.strategies.fedavg import FedAvg
from server.strategies.fedex import FedEx
from server.strategies.fedsb import FedSB
from server.strategies.fedsvd import FedSVD
from server.strategies.ffa import FFA
from server.strategies.flexlora import FlexLoRA
from server.strategies.flora import FLoRA
from server.strategies.head import Head
from server.strategies.rolora import RoLoRA

STRATEGIES: dict[str, type[LoraStrategy]] = {
    "fedavg": FedAvg,
    "ffa": FFA,
    "fedsvd": FedSVD,
    "rolora": RoLoRA,
    "fedex": FedEx,
    "flora": FLoRA,
    "flexlora": FlexLoRA,
    "fedsb": FedSB,
    "head": Head,
}
