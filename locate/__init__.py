"""Where a language model keeps a fact."""

from locate.average import average_trace
from locate.causal import causal_trace, causal_traces
from locate.corrupt import Gaussian, MultivariateGaussian, SwapSubject, Uniform
from locate.direct import LogitAttribution, direct_logit_attribution
from locate.knockout import Knockout, attention_knockout
from locate.lens import Lens, logit_lens
from locate.metrics import LogitDifference, LogProbability, Probability
from locate.neurons import (
    Attribution,
    GradientActivation,
    HardConcrete,
    IntegratedGradients,
    LogProbIncrease,
    ZeroOut,
    attribute_neurons,
    zeroed,
)
from locate.profile import AverageTrace
from locate.trace import Trace

__all__ = [
    "Attribution",
    "AverageTrace",
    "Gaussian",
    "GradientActivation",
    "HardConcrete",
    "IntegratedGradients",
    "Knockout",
    "Lens",
    "LogProbIncrease",
    "LogProbability",
    "LogitAttribution",
    "LogitDifference",
    "MultivariateGaussian",
    "Probability",
    "SwapSubject",
    "Trace",
    "Uniform",
    "ZeroOut",
    "attention_knockout",
    "attribute_neurons",
    "average_trace",
    "causal_trace",
    "causal_traces",
    "direct_logit_attribution",
    "logit_lens",
    "zeroed",
]
