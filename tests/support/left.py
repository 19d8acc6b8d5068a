"""What an intervention may leave behind in a model."""

from __future__ import annotations

from surgery import Model


def hooks_left(model: Model) -> list[str]:
    """Names of modules that still carry a forward hook."""
    return [name for name, module in model.hf.named_modules() if module._forward_hooks or module._forward_pre_hooks]
