"""Confidence of a local model's answers from one backward pass, and a policy that acts on it.

- `Guard` judges exchanges and carries out the policy.
- `Exchange`, `Passage`, `Message` say what is judged.
- Importing this package loads no model library.
"""

from semgrad_guard.flow import Action, Confidence, Decision, Exchange, Message, Outcome, Passage, Record, Score, Status
from semgrad_guard.guard import Guard

__all__ = [
    "Action",
    "Confidence",
    "Decision",
    "Exchange",
    "Guard",
    "Message",
    "Outcome",
    "Passage",
    "Record",
    "Score",
    "Status",
]
