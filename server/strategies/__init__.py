"""Aggregation rules on Flower's strategy interface, one file each."""
