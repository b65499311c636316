"""Fed-SB: A and B stay at their public start, the square core between them is trained and averaged.

Source: Singhal et al. (2025), https://arxiv.org/abs/2502.15436: r^2 numbers a matrix travel,
whatever its size, and their mean is exact. The start here is public (``common/initial.py``); the
paper's, from a gradient over records, would be a release.
"""

from server.strategies.middle import MiddleStrategy


class FedSB(MiddleStrategy):
    """The core and the head by their means."""
