"""RoLoRA: B in odd rounds, A in even ones, so that each mean is exact for the other held still.

Source: Chen et al. (2025), https://arxiv.org/abs/2502.01755. B goes first: while it is zero, A has
no gradient. What is trained in a round is in ``common/methods.py``.
"""

from server.strategies.middle import MiddleStrategy


class RoLoRA(MiddleStrategy):
    """The round's factor and the head by their means."""
