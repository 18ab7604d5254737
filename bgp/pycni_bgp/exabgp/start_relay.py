"""Starts ``relay`` from anywhere: exabgp runs a program by its path, with neither our folder nor our environment."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT.parent)]

if __name__ == "__main__":
    from pycni_bgp.exabgp.relay import Relay

    Relay(sys.argv[1]).run()
