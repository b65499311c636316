"""FedAvg: the mean of A and the mean of B, by public weights.

Source: McMahan et al. (2017), https://arxiv.org/abs/1602.05629, with the populations that a job
declares in place of record counts, which are private; on LoRA it is FedIT (Zhang et al. 2023,
https://arxiv.org/abs/2305.05644).

The product of the means is not the mean of the products, and under privacy the noise on A and on B
multiplies: the bias is what ``ffa``, ``fedsvd`` and ``fedex`` are about.
"""

from server.strategies.middle import MiddleStrategy


class FedAvg(MiddleStrategy):
    """A, B and the head, each by its mean."""
