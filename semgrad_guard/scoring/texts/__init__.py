"""Signals of texts alone: what an answer claims, and what of it the passages hold. They need no model."""
