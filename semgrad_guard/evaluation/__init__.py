"""Evaluation: turns data files into answers, graded scores, tables and reports."""
