"""What every uncertainty method is worth on one's own questions: answers, grades, scores, tables, plots."""
