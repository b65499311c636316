"""The head alone: the base stays as it is, and so do A and B, of which B is zero.

What federated LoRA is to be measured against, and under strong privacy often ahead of it: noise is
spread over fewer numbers.
"""

from server.strategies.middle import MiddleStrategy


class Head(MiddleStrategy):
    """The head by its mean; no part of LoRA is what sites send."""
