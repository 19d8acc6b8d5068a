"""Does an edit do what it claims, and nothing else?"""

from surgery.verification.baseline import Baseline
from surgery.verification.costs import Costs
from surgery.verification.drift import Drift
from surgery.verification.leak import Leak, delta_leak
from surgery.verification.probes import Probe, Rating
from surgery.verification.verdicts import Claim, Thresholds, Verdict
from surgery.verification.verify import verify

__all__ = [
    "Baseline",
    "Claim",
    "Costs",
    "Drift",
    "Leak",
    "Probe",
    "Rating",
    "Thresholds",
    "Verdict",
    "delta_leak",
    "verify",
]
