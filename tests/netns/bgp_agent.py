"""An agent as far as BGP goes, as a process of its own that can be killed: ``python -m tests.netns.bgp_agent FILE``.

The file is a pickle of the engine's kind, the namespace, the folder and the plan. It says "ready" when the engine has
taken the plan.
"""

from __future__ import annotations

import asyncio
import contextlib
import pickle
import subprocess
import sys
from pathlib import Path

from pycni_bgp.engine import Plan
from tests.netns.bgp_nodes import Node, make_engine


async def _live(kind: str, where: str, folder: str, plan: Plan) -> None:
    engine = make_engine(kind, where, Path(folder))
    await engine.put(plan)
    running = asyncio.create_task(engine.run())
    while engine.trouble:
        await asyncio.sleep(0.05)
    print("ready", flush=True)
    await running


def start(node: Node, plan: Plan) -> subprocess.Popen[str]:
    """An agent for a node that has no engine running; waits until it is ready. Kill it, or ``end`` it."""
    file = node.folder.parent / f"agent{node.number}"
    file.write_bytes(pickle.dumps((node.kind, node.where, str(node.folder), plan)))
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.netns.bgp_agent", str(file)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_live(*pickle.loads(Path(sys.argv[1]).read_bytes())))
