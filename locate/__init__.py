"""Where a language model keeps a fact."""

from locate.corrupt import Gaussian, SwapSubject, Uniform
from locate.trace import Trace, causal_trace

__all__ = ["Gaussian", "SwapSubject", "Trace", "Uniform", "causal_trace"]
