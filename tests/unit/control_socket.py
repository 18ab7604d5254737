"""An agent's control socket without an agent."""

from __future__ import annotations

import asyncio
import contextlib
import threading

from pycni.agent.httpd import UnixHttpServer


@contextlib.contextmanager
def serving(path, routes):
    """These routes answer at ``path``, on an event loop of their own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    server = UnixHttpServer(str(path), routes)
    try:
        asyncio.run_coroutine_threadsafe(server.start(), loop).result(5)
        yield
    finally:
        asyncio.run_coroutine_threadsafe(server.stop(), loop).result(5)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
