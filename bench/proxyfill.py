"""Load services into the kernel of this namespace and leave them there: ``python -m bench.proxyfill PLANE COUNT``."""

from __future__ import annotations

import importlib
import sys

from bench.proxyload import facts, filled
from pycni_proxy.engine import Engine

PACKAGES = {"nftables": "pycni_proxy.nft", "ipvs": "pycni_proxy.ipvs", "ebpf": "pycni_proxy.ebpf"}


def main() -> None:
    plane, count = sys.argv[1], int(sys.argv[2])
    made = importlib.import_module(PACKAGES[plane]).make(facts())
    Engine(facts(), [made]).sync(filled(count).snapshot())
    made.driver.close()


if __name__ == "__main__":
    main()
