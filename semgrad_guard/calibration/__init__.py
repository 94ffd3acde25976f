"""Turns scores into confidences: fits profiles on labelled answers, applies them, and measures how reliable they are.

- `fit_profile` fits a `Profile` on labelled scores, with out-of-sample evidence; `percentile_profile` needs no labels.
- `ProfileCalibrator` applies a profile; a score that does not fit it stays uncalibrated.
- `risk_threshold` finds the lowest confidence at which accepted answers keep to an error rate.
- `DriftMonitor` notices when recent scores no longer look like those that the profile was fitted on.
"""

from semgrad_guard.calibration.calibrator import ProfileCalibrator
from semgrad_guard.calibration.drift import Drift, DriftMonitor
from semgrad_guard.calibration.fit import fit_profile
from semgrad_guard.calibration.labels import LabelledScore
from semgrad_guard.calibration.metrics import Interval, paired_difference, with_interval
from semgrad_guard.calibration.percentile import percentile_profile
from semgrad_guard.calibration.profile import Evidence, LabelPairs, Profile, load_profile, shipped_profiles
from semgrad_guard.calibration.risk import Threshold, labels_needed, risk_threshold, risk_thresholds_by_tag

__all__ = [
    "Drift",
    "DriftMonitor",
    "Evidence",
    "Interval",
    "LabelPairs",
    "LabelledScore",
    "Profile",
    "ProfileCalibrator",
    "Threshold",
    "fit_profile",
    "labels_needed",
    "load_profile",
    "paired_difference",
    "percentile_profile",
    "risk_threshold",
    "risk_thresholds_by_tag",
    "shipped_profiles",
    "with_interval",
]
