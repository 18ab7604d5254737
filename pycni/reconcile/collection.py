"""Long passes without Python's cycle collector."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def no_collection(*, freeze: bool = False) -> Iterator[None]:
    """Without the cycle collector: a full pass makes many objects and no cycles; looking at them all took a quarter.

    With ``freeze`` it never looks at what there is by then: what the first pass makes stays as long as its objects.
    """
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            if freeze:
                gc.freeze()
            gc.enable()
