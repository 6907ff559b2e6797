"""Sweep files, one YAML a table or series, and what reads and submits them."""
