"""Where a language model keeps a fact."""

from locate.average import average_trace
from locate.causal import causal_trace, causal_traces
from locate.corrupt import Gaussian, MultivariateGaussian, SwapSubject, Uniform
from locate.metrics import LogitDifference, LogProbability, Probability
from locate.profile import AverageTrace
from locate.trace import Trace

__all__ = [
    "AverageTrace",
    "Gaussian",
    "LogProbability",
    "LogitDifference",
    "MultivariateGaussian",
    "Probability",
    "SwapSubject",
    "Trace",
    "Uniform",
    "average_trace",
    "causal_trace",
    "causal_traces",
]
