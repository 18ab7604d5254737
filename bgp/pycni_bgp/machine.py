"""Whether the machine is going down: then neighbours are to forget this node, instead of waiting for it."""

from __future__ import annotations

import os
import subprocess

BOOTED = "/run/systemd/system"
"""There when systemd runs the machine (sd_booted(3))."""
WAIT_S = 2.0


def stopping() -> bool:
    """False where systemd cannot be asked, as in a container."""
    if not os.path.isdir(BOOTED):
        return False
    try:
        done = subprocess.run(
            ["systemctl", "is-system-running"], capture_output=True, text=True, check=False, timeout=WAIT_S
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.stdout.strip() == "stopping"
