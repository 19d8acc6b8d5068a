"""Memory of the command line's own process: what is freed is kept for what comes next.

An edit or a verification frees hundreds of megabytes and asks for them again and again: packed, quantised and trained
weights, gradients. glibc hands them back to the system, and on a virtual machine memory fresh from the system comes at
a gigabyte a second, a tenth of the speed it is written at. A library leaves this to the process it is used in.
"""

from __future__ import annotations

import ctypes
import os

TRIM, MAP = -1, -3
"""glibc's numbers for the two settings (`man mallopt`)."""
MOST_KEPT = 2**31 - 1
LARGEST = 2**25
"""The largest piece glibc can be told to keep."""
OWN = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")
"""How a user sets them."""


def keep_freed_memory() -> bool:
    """Have the C library keep what is freed, up to two gigabytes; whether it was told to, and could be.

    A user's own settings hold; C libraries without the setting are left as they are.
    """
    if any(name in os.environ for name in OWN):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return False
    return bool(mallopt(MAP, LARGEST)) and bool(mallopt(TRIM, MOST_KEPT))
