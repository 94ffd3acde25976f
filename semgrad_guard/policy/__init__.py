"""The policy: it is read from a YAML file into frozen types and decides what happens to each answer.

`default.yaml` is the shipped example and explains every key; `strengths.py` holds the policies of a guard that is given
none.
"""

from semgrad_guard.policy.decide import PolicyDecider, best_attempt
from semgrad_guard.policy.explain import explain
from semgrad_guard.policy.load import PolicyWatcher, default_text, load_policy, parse_policy, policy_from
from semgrad_guard.policy.mistakes import policy_schema
from semgrad_guard.policy.model import Policy, RiskTarget
from semgrad_guard.policy.strengths import AcceptOption, PolicySource, policy_of

__all__ = [
    "AcceptOption",
    "Policy",
    "PolicyDecider",
    "PolicySource",
    "PolicyWatcher",
    "RiskTarget",
    "best_attempt",
    "default_text",
    "explain",
    "load_policy",
    "parse_policy",
    "policy_from",
    "policy_of",
    "policy_schema",
]
