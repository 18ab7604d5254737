"""The program between exabgp, whose child it is, and the agent, which may come and go: ``relay.py SOCKET``.

Life: started by exabgp, which writes what happens to its input and reads commands from its output. Its input is read at
once, always: exabgp stands still, and drops its sessions, when nobody does. It listens on a Unix socket for an agent,
tells it everything it remembers and then what changes, and takes from it what is to be announced, as a whole each time:
the difference to what was announced becomes commands. An agent that is too slow to listen is hung up on, and told
everything again when it comes back. It ends with exabgp, when its input does.

    {"out": {"192.0.2.2": {"10.1.1.0/24": "next-hop 192.0.2.1"}}}     all announcements to all neighbours
    {"reload": true}                                                  the configuration has changed
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import socket
import time
from collections.abc import Iterable, Mapping
from typing import Any

from pycni_bgp.exabgp import speech
from pycni_bgp.exabgp.memory import Memory

PENDING_MAX = 64 << 20
"""Bytes an agent may be behind."""
TICK_S = 1.0
FINISH_S = 1.0
"""From the last announcement of a first telling to the word that these were all."""
CHUNK = 1 << 18


class Relay:
    """One per exabgp."""

    def __init__(self, path: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        old = os.umask(0o177)
        try:
            self._listener.bind(path)
        finally:
            os.umask(old)
        self._listener.listen(1)
        self._listener.setblocking(False)
        self._memory = Memory()
        self._agent: socket.socket | None = None
        self._events, self._orders = b"", b""
        self._to_agent, self._to_exabgp = bytearray(), bytearray()
        self._announced: dict[str, dict[str, str]] = {}
        self._up: set[str] = set()
        self._finish_at: dict[str, float] = {}
        """When neighbours are told that all has been said."""
        self._heard = False
        """Whether an agent has said what is to be announced: before that nothing is complete."""
        self._selector = selectors.DefaultSelector()

    def run(self) -> None:
        """Until exabgp ends."""
        os.set_blocking(0, False)
        os.set_blocking(1, False)
        while True:
            self._selector.close()
            self._selector = selectors.DefaultSelector()
            self._selector.register(0, selectors.EVENT_READ)
            self._selector.register(self._listener, selectors.EVENT_READ)
            if self._to_exabgp:
                self._selector.register(1, selectors.EVENT_WRITE)
            if self._agent is not None:
                wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._to_agent else 0)
                self._selector.register(self._agent, wanted)
            for key, mask in self._selector.select(TICK_S):
                if key.fileobj == 0:
                    if not self._listen_to_exabgp():
                        return
                elif key.fileobj == 1:
                    sent = os.write(1, self._to_exabgp[:CHUNK])
                    del self._to_exabgp[:sent]
                elif key.fileobj is self._listener:
                    self._accept()
                elif key.fileobj is self._agent:
                    self._serve(mask)
            self._tell(self._memory.tick(time.monotonic()))
            self._finish()

    # --- exabgp --------------------------------------------------------------------------------------------------

    def _listen_to_exabgp(self) -> bool:
        """Take in what there is; False at the end."""
        try:
            data = os.read(0, CHUNK)
        except BlockingIOError:
            return True
        if not data:
            return False
        *lines, self._events = (self._events + data).split(b"\n")
        for line in lines:
            # Answers to commands are no JSON and of no interest.
            if not line.startswith(b"{"):
                continue
            for event in speech.decode(line.decode(errors="replace")):
                self._tell(self._memory.take(event, time.monotonic(), time.time()))
                if isinstance(event, speech.Changed):
                    self._session(event)
        return True

    def _session(self, event: speech.Changed) -> None:
        if event.state == "up":
            self._up.add(event.peer)
            if self._heard:
                # Once more, whole: what was said before exabgp knew this neighbour it has not kept.
                self._say(speech.commands(event.peer, {}, self._announced.get(event.peer, {})))
                self._told(event.peer)
        elif event.state == "down":
            self._up.discard(event.peer)
            self._finish_at.pop(event.peer, None)

    def _told(self, peer: str) -> None:
        """All is said to a neighbour, which is told so a little later: exabgp works on several commands at once."""
        self._finish_at[peer] = time.monotonic() + FINISH_S

    def _finish(self) -> None:
        if self._to_exabgp:
            return
        for peer in [peer for peer, due in self._finish_at.items() if time.monotonic() >= due]:
            del self._finish_at[peer]
            self._say(speech.finished(peer))

    def _say(self, lines: Iterable[str]) -> None:
        for line in lines:
            self._to_exabgp += line.encode() + b"\n"

    # --- the agent -----------------------------------------------------------------------------------------------

    def _accept(self) -> None:
        """The one that came last is the agent."""
        with contextlib.suppress(BlockingIOError):
            agent, _ = self._listener.accept()
            self._hang_up()
            agent.setblocking(False)
            self._agent = agent
            self._tell(self._memory.replay())

    def _hang_up(self) -> None:
        if self._agent is not None:
            self._agent.close()
        self._agent = None
        self._orders = b""
        self._to_agent.clear()

    def _tell(self, messages: Iterable[Mapping[str, Any]]) -> None:
        for message in messages:
            if self._agent is None:
                continue
            self._to_agent += json.dumps(message, separators=(",", ":")).encode() + b"\n"
            if len(self._to_agent) > PENDING_MAX:
                self._hang_up()

    def _serve(self, mask: int) -> None:
        assert self._agent is not None, "it was waited for"
        try:
            if mask & selectors.EVENT_WRITE and self._to_agent:
                sent = self._agent.send(self._to_agent[:CHUNK])
                del self._to_agent[:sent]
            if not mask & selectors.EVENT_READ:
                return
            data = self._agent.recv(CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._hang_up()
            return
        *lines, self._orders = (self._orders + data).split(b"\n")
        for line in lines:
            self._order(json.loads(line))

    def _order(self, order: Mapping[str, Any]) -> None:
        if order.get("reload"):
            self._say(["reload"])
        if "out" not in order:
            return
        wanted: dict[str, dict[str, str]] = order["out"]
        for peer, routes in wanted.items():
            self._say(speech.commands(peer, self._announced.get(peer, {}), routes))
        # exabgp has forgotten what it announced to a neighbour that it has no more.
        self._announced = wanted
        if not self._heard:
            self._heard = True
            for peer in sorted(self._up):
                self._told(peer)
