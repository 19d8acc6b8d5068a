"""Which neurons of the mlps an answer comes from. A neuron is an input of a down-projection.

1. A method, which is its own configuration, scores every neuron (`log_prob`, `gradient`, `integrated`,
   `hard_concrete`, `zero_out`).
2. `attribution` takes the best, and says which words each of them promotes.
3. `ablation` zeroes them and compares with random neurons and other facts: the number that decides.
"""

from locate.neurons.ablation import Ablation
from locate.neurons.activations import zeroed
from locate.neurons.attribution import Attribution, Words, attribute_neurons
from locate.neurons.gradient import GradientActivation
from locate.neurons.hard_concrete import HardConcrete
from locate.neurons.integrated import IntegratedGradients
from locate.neurons.log_prob import LogProbIncrease
from locate.neurons.method import Method, Scores
from locate.neurons.zero_out import ZeroOut

__all__ = [
    "Ablation",
    "Attribution",
    "GradientActivation",
    "HardConcrete",
    "IntegratedGradients",
    "LogProbIncrease",
    "Method",
    "Scores",
    "Words",
    "ZeroOut",
    "attribute_neurons",
    "zeroed",
]
