"""Was a text seen in training? Told from how a model reads it.

1. Min-K% (Shi et al. 2023, https://arxiv.org/abs/2310.16789): the mean log-probability of the k % least likely tokens
   of a text. A text that was seen has few surprises.
2. AUC: the chance that a text never shown scores higher than one to be forgotten, ties counting half. 0 where the model
   has seen all of the latter, 0.5 where it has seen neither.
3. PrivLeak (Shi et al. 2024, https://arxiv.org/abs/2407.06460, section 3): 100 (AUC - AUC_ref) / AUC_ref, AUC_ref that
   of a model that was never trained on them. About -100: they still leak. 0: as if never seen. Large and positive: they
   are stranger to the model than texts it has never seen, which gives them away as well.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from surgery.errors import SurgeryError

SHARE = 0.4


def min_k(log_probs: Float[np.ndarray, " tokens"], share: float = SHARE) -> float:
    """Mean of the least likely share of a text's tokens, at least one.

    Raises:
        SurgeryError: the share is none, or there are no tokens.
    """
    if not 0 < share <= 1:
        raise SurgeryError(f"a share of {share} of the tokens is none; give more than 0 and at most 1")
    if not len(log_probs):
        raise SurgeryError("a text of a single token has no likelihood; give longer texts")
    return float(np.sort(log_probs)[: max(1, int(share * len(log_probs)))].mean())


def auc(positive: Float[np.ndarray, " n"], negative: Float[np.ndarray, " m"]) -> float:
    """The chance that one of the first is larger than one of the second, ties counting half.

    Raises:
        SurgeryError: either is empty or holds nan.
    """
    if not len(positive) or not len(negative) or np.isnan(positive).any() or np.isnan(negative).any():
        raise SurgeryError("an AUC needs scores on both sides, none of them nan")
    ordered = np.sort(negative)
    below, upto = (np.searchsorted(ordered, positive, side=side) for side in ("left", "right"))
    return float((below + upto).sum()) / (2 * len(positive) * len(negative))


def forget_auc(forget: Float[np.ndarray, " n"], holdout: Float[np.ndarray, " m"]) -> float:
    """AUC of texts never shown, as the positive ones, against those to be forgotten."""
    return auc(holdout, forget)


def priv_leak(found: float, reference: float) -> float:
    """By how many per cent an AUC differs from that of a model that was never trained on the texts.

    Raises:
        SurgeryError: the reference is 0: that model knows every one of them.
    """
    if reference <= 0:
        raise SurgeryError("a reference AUC of 0 belongs to a model that has seen the texts; give one that has not")
    return 100 * (found - reference) / reference
