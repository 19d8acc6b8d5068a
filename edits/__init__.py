"""How to change or remove what a language model knows."""

from edits.method import METHODS, Method, method_named, register
from edits.objectives import OBJECTIVES, MaximumEntropy, Neutral, Objective, Replace, Suppress, objective_named
from edits.operation import Operation, operate
from edits.rank_one import RankOne, recommended_site
from edits.statistics import SecondMoment, Statistics, find_statistics, fit_statistics
from edits.values import ValueSearch

__all__ = [
    "METHODS",
    "OBJECTIVES",
    "MaximumEntropy",
    "Method",
    "Neutral",
    "Objective",
    "Operation",
    "RankOne",
    "Replace",
    "SecondMoment",
    "Statistics",
    "Suppress",
    "ValueSearch",
    "find_statistics",
    "fit_statistics",
    "method_named",
    "objective_named",
    "operate",
    "recommended_site",
    "register",
]
