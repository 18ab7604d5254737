"""Asking the agents of one node or of a lab's nodes the same question, at once, for the status commands."""

from __future__ import annotations

import argparse
import json
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import msgspec

from pycni import cli_agent
from pycni.cli_agent import Agent, AgentError
from pycni.cli_status_text import paint
from pycni.wire import typed

T = TypeVar("T")
AT_ONCE = 16


class Silent(NamedTuple):
    """An agent that does not answer, or says no."""

    node: str
    reason: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which agents are asked, and how it is printed."""
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    cli_agent.add_arguments(parser)


def each(args: argparse.Namespace, ask: Callable[[Agent], T]) -> tuple[list[T], list[Silent]]:
    """The answers of all agents that are meant, in their order, and who gives none."""
    some = cli_agent.agents(args)
    answers = [_answer(ask, some[0])] if len(some) == 1 else _at_once(some, ask)
    found = [item for item in answers if not isinstance(item, Silent)]
    return found, [item for item in answers if isinstance(item, Silent)]


def _at_once(some: Sequence[Agent], ask: Callable[[Agent], T]) -> list[T | Silent]:
    if len(some) > AT_ONCE:
        from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415 - threads alone are there sooner

        with ThreadPoolExecutor(AT_ONCE) as pool:
            return list(pool.map(lambda agent: _answer(ask, agent), some))
    found: dict[int, T | Silent] = {}

    def work(number: int, agent: Agent) -> None:
        try:
            found[number] = _answer(ask, agent)
        except Exception as error:  # noqa: BLE001 - raised below, on the thread that waits
            failed.append(error)

    failed: list[Exception] = []
    threads = [threading.Thread(target=work, args=item) for item in enumerate(some)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]
    return [found[number] for number in range(len(some))]


def _answer(ask: Callable[[Agent], T], agent: Agent) -> T | Silent:
    try:
        return ask(agent)
    except AgentError as error:
        return Silent(agent.node, str(error))


def decoded(raw: bytes, kind: type[T]) -> T:
    """An agent's answer as a value. Any thread. Raises AgentError."""
    try:
        return typed.decode(raw, kind)
    except msgspec.DecodeError as exc:
        raise AgentError(f"the agent's answer cannot be read: {exc}") from exc


def as_json(nodes: Sequence[Any], silent: Sequence[Silent], **more: object) -> None:
    """One object: ``nodes``, and ``silent``: who gives no answer, with the reason."""
    body: Mapping[str, object] = {
        **more,
        "nodes": msgspec.to_builtins(nodes),
        "silent": [item._asdict() for item in silent],
    }
    sys.stdout.write(json.dumps(body, indent=2) + "\n")
    sys.stdout.flush()


def complaints(silent: Sequence[Silent]) -> list[str]:
    """A line for each agent without an answer."""
    return [paint(f"node {item.node}: {item.reason}" if item.node else item.reason, "red") for item in silent]
