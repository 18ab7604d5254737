"""Named network namespaces with nothing in them."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Callable, Iterator

from pycni.kernel import netns as namespaces

_NUMBERS = itertools.count()


@contextlib.contextmanager
def fresh_spaces() -> Iterator[Callable[[], str]]:
    """Makes them and tells their names; all are removed at the end."""
    made: list[str] = []

    def make() -> str:
        name = f"pyt{os.getpid()}-{next(_NUMBERS)}"
        namespaces.create(name)
        made.append(name)
        return name

    try:
        yield make
    finally:
        for name in made:
            namespaces.delete(name)
