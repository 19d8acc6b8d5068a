"""Where a language model keeps a fact."""

from locate.causal import causal_trace, causal_traces
from locate.corrupt import Gaussian, MultivariateGaussian, SwapSubject, Uniform
from locate.metrics import LogitDifference, LogProbability, Probability
from locate.trace import Trace

__all__ = [
    "Gaussian",
    "LogProbability",
    "LogitDifference",
    "MultivariateGaussian",
    "Probability",
    "SwapSubject",
    "Trace",
    "Uniform",
    "causal_trace",
    "causal_traces",
]
