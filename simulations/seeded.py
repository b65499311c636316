"""Keys that a seed repeats, for simulations alone.

Whoever knows the seed can subtract the noise: a run with these keys promises nothing and is marked
``"private": false``. Keys differ by site, purpose, round and step, so that the order in which sites
run changes nothing; they do not differ by job, so that jobs under one seed see the same batches.
"""

from common.privacy.stream import KeySource, public_keys


def seeded_keys(seed: int, site: str) -> KeySource:
    """The keys of a simulated site."""
    return public_keys("simulation", str(seed), site)
