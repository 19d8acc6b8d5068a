"""How to change or remove what a language model knows."""

from edits.layers import Sweep
from edits.method import METHODS, Method, method_named, register
from edits.objectives import OBJECTIVES, MaximumEntropy, Neutral, Objective, Refuse, Replace, Suppress, objective_named
from edits.operation import Operation, operate
from edits.rank_one import RankOne, recommended_site
from edits.recommended import find_sweep, keep_sweep
from edits.sample import sample_facts
from edits.statistics import SecondMoment, Statistics, find_statistics, fit_statistics
from edits.sweep import sweep
from edits.values import Value, ValueSearch, find_values

__all__ = [
    "METHODS",
    "OBJECTIVES",
    "MaximumEntropy",
    "Method",
    "Neutral",
    "Objective",
    "Operation",
    "RankOne",
    "Refuse",
    "Replace",
    "SecondMoment",
    "Statistics",
    "Suppress",
    "Sweep",
    "Value",
    "ValueSearch",
    "find_statistics",
    "find_sweep",
    "find_values",
    "fit_statistics",
    "keep_sweep",
    "method_named",
    "objective_named",
    "operate",
    "recommended_site",
    "register",
    "sample_facts",
    "sweep",
]
