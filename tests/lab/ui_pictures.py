"""Makes docs/ui-light.png and docs/ui-dark.png: a lab of three nodes with traffic, a trace, and a fault.

Run as root: ``.venv/bin/python -m tests.lab.ui_pictures``. The lab is called ``pictures`` and goes again.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from pycni.lab.apply import Cluster
from pycni.lab.apply_commands import read
from pycni.lab.objects import Key
from pycni.lab.run import Lab
from pycni.lab.topology import LabSpec

from .browser import Browser
from .lab_tools import ROOT

SIZE = (1440, 900)
COLOURS = 256
DONE = "!!document.querySelector('#fault, #arrived')"
TRAFFIC = (("pod1", "pod5", 0.001), ("pod4", "pod6", 0.01), ("pod3", "pod2", 0.05))


def main() -> None:
    """Make both."""
    lab = Lab.up(LabSpec(name="pictures", proxy="nftables", policy="nftables", bgp="exabgp"))
    try:
        for name in ("web", "policy"):
            Cluster(lab).apply(read([str(ROOT / f"docs/examples/{name}.yaml")]))
        Cluster(lab).label([Key("Pod", "default", "pod1")], {"role": "front"})
        with contextlib.ExitStack() as stack:
            url = stack.enter_context(_served(lab))
            for source, target, interval in TRAFFIC:
                stack.enter_context(lab.traffic(source, lab.pod(target).ips[0], interval))
            browser = stack.enter_context(
                Browser(Path(stack.enter_context(tempfile.TemporaryDirectory())), SIZE)
            )
            browser.media(prefers_reduced_motion="reduce", prefers_color_scheme="light")
            _open(browser, url)
            _trace(browser, "pod:default/pod4", "svc:shop/web")  # denied, so there is something to be seen
            browser.press("Escape")
            _trace(browser, "pod:default/pod1", "svc:shop/web")
            _picture(browser, "ui-light.png")
            browser.media(prefers_reduced_motion="reduce", prefers_color_scheme="dark")
            lab.signal_agent("node1", signal.SIGSTOP)
            _damage(lab)
            browser.until("!!document.querySelector('.thing.arc[data-state=bad]')")
            browser.press("Escape")
            _trace(browser, "pod:default/pod1", "pod:default/pod2")
            _picture(browser, "ui-dark.png")
    finally:
        lab.down()


@contextlib.contextmanager
def _served(lab: Lab) -> Iterator[str]:
    words = [sys.executable, "-m", "pycni.cli", "ui", "--name", lab.spec.name]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().split()[-1]
        finally:
            process.send_signal(signal.SIGINT)


def _open(browser: Browser, url: str) -> None:
    browser.go(url)
    browser.until(
        "document.querySelectorAll('.thing.pod').length > 0 && Number(document.body.dataset.samples) > 3"
    )


def _trace(browser: Browser, *ends: str) -> None:
    for name in ends:
        browser.click(f'.thing[data-id="{name}"]')
    browser.until(DONE)


def _damage(lab: Lab) -> None:
    far = str(next(iter(lab.node("node2").addresses.values())).ip)
    lines = lab.exec("node1", ["bridge", "fdb", "show", "dev", "flannel.1"]).stdout.splitlines()
    mac = next(line.split()[0] for line in lines if far in line.split())
    lab.exec("node1", ["bridge", "fdb", "del", mac, "dev", "flannel.1", "dst", far])


def _picture(browser: Browser, name: str) -> None:
    time.sleep(3)  # rates settle
    file = ROOT / "docs" / name
    browser.run("document.activeElement.blur()")
    browser.picture(file)
    with Image.open(file) as whole:
        few = whole.convert("RGB").quantize(COLOURS, kmeans=4, dither=Image.Dither.NONE)
    few.save(file, optimize=True)
    print(f"{file}: {file.stat().st_size} bytes")


if __name__ == "__main__":
    main()
