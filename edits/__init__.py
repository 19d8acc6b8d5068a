"""How to change or remove what a language model knows."""

from edits.alpha_edit import AlphaEdit, NormAnchored
from edits.convergence import Convergence, fit_with_convergence
from edits.emmet import Emmet
from edits.finetune import ConstrainedFineTune, FineTune
from edits.fitting import fit_statistics
from edits.grid import ClosedForm
from edits.layers import Sweep
from edits.ledger import Ledger
from edits.ledger_store import Damaged
from edits.ledger_version import Version as LedgerVersion
from edits.limits import Limits, NearCollapse
from edits.lora import LoRA
from edits.mass import Mass, MassSequence, Pmet
from edits.method import METHODS, Method, method_named, register
from edits.neurons import ReplaceNeurons, ScaleNeurons, ZeroNeurons
from edits.objectives import OBJECTIVES, MaximumEntropy, Neutral, Objective, Refuse, Replace, Suppress, objective_named
from edits.operation import Operation, operate
from edits.rank_one import RankOne
from edits.recommended import find_sweep, keep_sweep, recommended_site, recommended_sites
from edits.sample import sample_facts
from edits.solve import Constrained, LeastSquares, NullSpace, Solver
from edits.statistics import SecondMoment, Statistics, find_statistics, keep_statistics
from edits.sweep import sweep
from edits.ultra import UltraEdit
from edits.values import Value, ValueSearch, find_values

__all__ = [
    "METHODS",
    "OBJECTIVES",
    "AlphaEdit",
    "ClosedForm",
    "Constrained",
    "ConstrainedFineTune",
    "Convergence",
    "Damaged",
    "Emmet",
    "FineTune",
    "LeastSquares",
    "Ledger",
    "LedgerVersion",
    "Limits",
    "LoRA",
    "Mass",
    "MassSequence",
    "MaximumEntropy",
    "Method",
    "NearCollapse",
    "Neutral",
    "NormAnchored",
    "NullSpace",
    "Objective",
    "Operation",
    "Pmet",
    "RankOne",
    "Refuse",
    "Replace",
    "ReplaceNeurons",
    "ScaleNeurons",
    "SecondMoment",
    "Solver",
    "Statistics",
    "Suppress",
    "Sweep",
    "UltraEdit",
    "Value",
    "ValueSearch",
    "ZeroNeurons",
    "find_statistics",
    "find_sweep",
    "find_values",
    "fit_statistics",
    "fit_with_convergence",
    "keep_statistics",
    "keep_sweep",
    "method_named",
    "objective_named",
    "operate",
    "recommended_site",
    "recommended_sites",
    "register",
    "sample_facts",
    "sweep",
]
