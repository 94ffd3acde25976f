"""`semgrad-guard review`: the queue of answers that wait for a person, at the terminal."""
