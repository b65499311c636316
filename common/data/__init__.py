"""Readers, column mapping, named sets and the synthetic wards."""
