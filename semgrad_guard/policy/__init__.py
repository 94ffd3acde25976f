"""The policy: it is read from a YAML file into frozen types and decides what happens to each answer.

`default.yaml` is the shipped policy and explains every key.
"""

from semgrad_guard.policy.decide import PolicyDecider, best_attempt
from semgrad_guard.policy.explain import explain
from semgrad_guard.policy.load import PolicyWatcher, default_text, load_policy, parse_policy, policy_from
from semgrad_guard.policy.mistakes import policy_schema
from semgrad_guard.policy.model import Policy, RiskTarget

__all__ = [
    "Policy",
    "PolicyDecider",
    "PolicyWatcher",
    "RiskTarget",
    "best_attempt",
    "default_text",
    "explain",
    "load_policy",
    "parse_policy",
    "policy_from",
    "policy_schema",
]
