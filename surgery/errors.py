"""What can be wrong with a user's own value. Every message is one sentence that names the value and the remedy."""

from __future__ import annotations

from collections.abc import Iterable


class SurgeryError(ValueError):
    """A value the user gave cannot be used; the command line answers it with exit code 2."""


class FactError(SurgeryError):
    """A fact that cannot be asked of any model.

    Attributes:
        field: the field of `Fact` that is wrong.
    """

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field
        self.detail = message


class UnsupportedModel(SurgeryError):
    """A model whose anatomy is not the one this package knows how to operate on."""


class NothingToTry(SurgeryError):
    """A measurement has nothing to be made on; what it is a part of can go on without it.

    Attributes:
        reason: why, without a word of the user's facts.
    """

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class WrongWeights(SurgeryError):
    """An edit or statistics made for other weights than the ones at hand."""


def check_choice(what: str, value: object, allowed: Iterable[object]) -> None:
    """Refuse a value that is not one of those allowed, which the message names.

    Raises:
        SurgeryError: it is not.
    """
    choices = list(allowed)
    if value not in choices:
        raise SurgeryError(
            f"there is no {what} {value!r}; choose one of {', '.join(str(one) for one in choices if one)}"
        )
