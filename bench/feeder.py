"""The tests' API server with a large world: ``python -m bench.feeder HOST PORT OBJECTS.json`` serves until killed.

The scripted server writes every page with Python's json module and copies every object it is given; with 100,000 pods it
takes longer than the agent it feeds. Here objects are taken as they are, and pages of a listing of everything are put
together from objects encoded once. All else is the tests' server's.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import msgspec

from tests.k8s.api_server import KINDS, ApiServer, Reply, Request


class Feeder(ApiServer):
    """``fill`` before the first request."""

    def fill(self, objects: dict[str, list[dict[str, Any]]]) -> None:
        """Take a world: plural name -> objects."""
        self._encoded: dict[str, list[bytes]] = {}
        for plural, found in objects.items():
            held, (kind, version) = self.world.objects[plural], KINDS[plural]
            for item in found:
                meta = item["metadata"]
                self.world.version += 1
                meta["resourceVersion"] = str(self.world.version)
                held[meta.get("namespace", ""), meta["name"]] = {"kind": kind, "apiVersion": version, **item}
        for plural, held in self.world.objects.items():
            self._encoded[plural] = [msgspec.json.encode(item) for _, item in sorted(held.items())]
        self._filled_at = self.world.version

    def _list(self, plural: str, namespace: str, request: Request) -> Reply:
        query = request.query
        if (
            namespace
            or self.world.version != self._filled_at
            or {"labelSelector", "fieldSelector"} & set(query)
        ):
            return super()._list(plural, namespace, request)
        kind, version = KINDS[plural]
        items, start = self._encoded[plural], int(query.get("continue") or 0)
        end = start + (int(query.get("limit") or 0) or len(items))
        meta = {
            "resourceVersion": str(self._filled_at),
            **({"continue": str(end)} if end < len(items) else {}),
        }
        head = msgspec.json.encode({"kind": f"{kind}List", "apiVersion": version, "metadata": meta})
        return Reply(200, b'%s,"items":[%s]}' % (head[:-1], b",".join(items[start:end])))


async def main(host: str, port: str, objects: str) -> None:
    """Serve a file's objects."""
    async with Feeder(host=host, port=int(port)) as server:
        server.fill(msgspec.json.decode(Path(objects).read_bytes()))
        print(f"serving {server.url}", flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
