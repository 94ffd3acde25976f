"""Builds the documentation site: pages that people wrote, and reference pages that are made from the code."""
