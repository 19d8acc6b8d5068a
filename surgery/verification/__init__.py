"""Does an edit do what it claims, and nothing else?"""

from surgery.verification.baseline import Baseline
from surgery.verification.costs import Costs
from surgery.verification.depth import Depth, removal_depth
from surgery.verification.drift import Drift
from surgery.verification.harness import Tasks
from surgery.verification.intervention import Intervention
from surgery.verification.leak import Leak, delta_leak
from surgery.verification.probes import Probe, Rating
from surgery.verification.quantisation import ChangedBins, changed_bins, quantised
from surgery.verification.verdicts import Claim, Thresholds, Verdict
from surgery.verification.verify import verify

__all__ = [
    "Baseline",
    "ChangedBins",
    "Claim",
    "Costs",
    "Depth",
    "Drift",
    "Intervention",
    "Leak",
    "Probe",
    "Rating",
    "Tasks",
    "Thresholds",
    "Verdict",
    "changed_bins",
    "delta_leak",
    "quantised",
    "removal_depth",
    "verify",
]
