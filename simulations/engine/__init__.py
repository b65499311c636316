"""Many simulated sites trained in one forward and backward pass over a shared frozen base.

Sites differ in their adapters alone, so rows of all of them go through the base together, and each
layer that trains takes every row's own site's tensors. What comes out is each site's own update, as
it would train by itself (client/train.py), but for rounding.

Not for records that are anybody's: sites share a process, batches and seeded noise.
"""
