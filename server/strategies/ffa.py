"""FFA-LoRA: A stays at its public start, B is trained and averaged.

Source: Sun et al. (2024), https://arxiv.org/abs/2403.12313. The mean of B times A is exactly the
mean of the products, and noise on B is not multiplied by noise on A.
"""

from server.strategies.middle import MiddleStrategy


class FFA(MiddleStrategy):
    """B and the head by their means; A is no part of what sites send."""
