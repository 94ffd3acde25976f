"""Score -> Confidence: fits profiles on labelled answers, applies them, and says how far they can be trusted.

- `fit_profile` turns labelled scores into a `Profile`, with out-of-sample evidence.
- `ProfileCalibrator` applies one; a score that it does not fit stays uncalibrated.
"""

from semgrad_guard.calibration.calibrator import ProfileCalibrator
from semgrad_guard.calibration.labels import LabelledScore
from semgrad_guard.calibration.profile import Profile, load_profile, shipped_profiles
from semgrad_guard.calibration.profile_fitting import fit_profile

__all__ = ["LabelledScore", "Profile", "ProfileCalibrator", "fit_profile", "load_profile", "shipped_profiles"]
