"""Tasks: one file each, encode -> per-example loss -> metrics."""
