"""How much a count of wrong answers proves: exact binomial tails and bounds (Clopper and Pearson 1934)."""

from __future__ import annotations

import math
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from semgrad_guard.errors import CalibrationError

if TYPE_CHECKING:
    from numpy.typing import NDArray


def check_target(alpha: float, delta: float) -> None:
    """Check that an error rate and a failure probability are strictly between 0 and 1.

    Raises:
        CalibrationError: one of them is not.
    """
    for name, value in (("max_error_rate", alpha), ("delta", delta)):
        if not 0 < value < 1:
            msg = f"{name} is {value:g}, but must lie strictly between 0 and 1"
            raise CalibrationError(msg)


def binomial_cdf(k: int, n: int, p: float) -> float:
    """Return P(X <= k) for X binomial with n draws of probability p."""
    if p <= 0 or k >= n:
        return 1.0
    if p >= 1 or k < 0:
        return 0.0
    i = np.arange(k + 1)
    log_factorial = _log_factorials(1 << n.bit_length())
    logs = log_factorial[n] - log_factorial[i] - log_factorial[n - i] + i * math.log(p) + (n - i) * math.log1p(-p)
    top = logs.max()
    return min(1.0, float(np.exp(logs - top).sum()) * math.exp(top))


@cache
def _log_factorials(end: int) -> NDArray[np.float64]:
    """Return ln 0!, ln 1!, ... up to before `end`."""
    return np.append(0.0, np.cumsum(np.log(np.arange(1, end))))


def upper_bound(n_wrong: int, n: int, delta: float) -> float:
    """Return the Clopper-Pearson bound: the error rate under which so few wrong answers have only chance delta."""
    if n_wrong >= n:
        return 1.0
    low, high = n_wrong / n, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if binomial_cdf(n_wrong, n, middle) > delta else (low, middle)
    return high


def labels_needed(alpha: float, delta: float, *, error_rate: float = 0.0) -> int:
    """Return how many accepted labelled answers are needed to prove an error rate of at most alpha.

    Args:
        alpha: the error rate to prove, in (0, 1).
        delta: allowed probability of being wrong about it, in (0, 1).
        error_rate: share of them that is in truth wrong, below alpha; with 0 it is the least number for any proof.
    """
    check_target(alpha, delta)
    if error_rate <= 0:
        return math.ceil(math.log(delta) / math.log1p(-alpha))
    if error_rate >= alpha:
        msg = (
            f"answers of error rate {error_rate:g} cannot be shown to have at most {alpha:g}, with any number of labels"
        )
        raise CalibrationError(msg)

    def proves(n: int) -> bool:
        return binomial_cdf(math.ceil(error_rate * n), n, alpha) <= delta

    low, high = 0, 1
    while not proves(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if proves(middle) else (middle, high)
    return high
