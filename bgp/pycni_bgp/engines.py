"""The engines there are; one is imported only when it is asked for."""

from __future__ import annotations

import importlib.util
import shutil

from pycni_bgp.engine import Engine


def missing(name: str) -> str:
    """What an engine lacks on this machine, in words; "" when it can run."""
    if name == "bird":
        return "" if shutil.which("bird") else "there is no BIRD (Debian: bird2) on this machine"
    found = importlib.util.find_spec("exabgp")
    return "" if found is not None else "exabgp is not installed (pip install pycni[bgp])"


def make(name: str, folder: str) -> Engine:
    """An engine that keeps its files in a folder. To be made in the node's network namespace."""
    if name == "bird":
        from pycni_bgp.bird.daemon import Bird  # noqa: PLC0415

        return Bird(folder)
    from pycni_bgp.exabgp.daemon import ExaBgp  # noqa: PLC0415

    return ExaBgp(folder)
