"""Measurements under load; each is a program with `--help`."""
