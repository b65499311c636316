"""FedAvg: the mean of A and the mean of B, by public weights.

Source: McMahan et al. (2017), https://arxiv.org/abs/1602.05629, with the populations that a job
declares in place of record counts, which are private; on LoRA it is FedIT (Zhang et al. 2023,
https://arxiv.org/abs/2305.05644).

The product of the means is not the mean of the products, and under privacy the noise on A and on B
multiplies: the bias is what ``ffa``, ``fedsvd`` and ``fedex`` are about.
"""

from server.strategies.base import Folding, LoraStrategy, Round
from server.strategies.middle import MiddleFolding


class FedAvg(LoraStrategy):
    """A, B and the head, each by its mean."""

    @staticmethod
    def folding(begun: Round) -> Folding:
        """The mean of the changes."""
        return MiddleFolding(begun)
