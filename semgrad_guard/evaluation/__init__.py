"""Data -> answers -> graded scores -> tables and reports."""
