"""Where a language model keeps a fact."""

from locate.average import average_trace
from locate.causal import causal_trace, causal_traces
from locate.contrast import Unit
from locate.corrupt import Gaussian, MultivariateGaussian, SwapSubject, Uniform
from locate.direct import LogitAttribution, direct_logit_attribution
from locate.exact import Agreement, Verified, agreement, verified
from locate.knockout import Knockout, attention_knockout
from locate.lens import Lens, logit_lens
from locate.metrics import Logit, LogitDifference, LogProbability, Probability
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
from locate.relevance import RelevancePatching, relevance_rules
from locate.screen import AttributionPatching, Screen, screen
from locate.trace import Trace

__all__ = [
    "Agreement",
    "Attribution",
    "AttributionPatching",
    "AverageTrace",
    "Gaussian",
    "GradientActivation",
    "HardConcrete",
    "IntegratedGradients",
    "Knockout",
    "Lens",
    "LogProbIncrease",
    "LogProbability",
    "Logit",
    "LogitAttribution",
    "LogitDifference",
    "MultivariateGaussian",
    "Probability",
    "RelevancePatching",
    "Screen",
    "SwapSubject",
    "Trace",
    "Uniform",
    "Unit",
    "Verified",
    "ZeroOut",
    "agreement",
    "attention_knockout",
    "attribute_neurons",
    "average_trace",
    "causal_trace",
    "causal_traces",
    "direct_logit_attribution",
    "logit_lens",
    "relevance_rules",
    "screen",
    "verified",
    "zeroed",
]
