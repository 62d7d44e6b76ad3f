"""What calls of a kind use over their life, learned, and what that says about the host's future. Pure.

life.py is one past call · learner.py the distribution of those that are alike · need.py a forecast · kept.py for how
long it stands · peak.py the host's future peak, in the manner of Past-Future · calibration.py how good all that is.
"""

from controller.forecast.kept import Kept
from controller.forecast.learner import Learner
from controller.forecast.life import Kind, Life, life_of
from controller.forecast.need import UNKNOWN, Future, Need
from controller.forecast.peak import SHARE, ends_by, fits, future_peak, peak_of

__all__ = [
    "SHARE",
    "UNKNOWN",
    "Future",
    "Kept",
    "Kind",
    "Learner",
    "Life",
    "Need",
    "ends_by",
    "fits",
    "future_peak",
    "life_of",
    "peak_of",
]
