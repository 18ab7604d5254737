"""How far the kernel is, told to who waits for it: at once, when it gets there, or why it does not."""

from __future__ import annotations

import asyncio
import json
import threading

import pytest

from pycni.agent.httpd import Response
from pycni.policy.settled import Settled
from pycni.sources.manifests import GENERATION, MANIFESTS
from pycni.store import Store


def asked(settled: Settled, query: str, after: float = -1.0, number: int = 0) -> Response:
    """The answer; ``number`` is reached on another thread ``after`` seconds."""

    async def run() -> Response:
        if after >= 0:
            threading.Timer(after, settled.reached, [number]).start()
        return await settled.routes()["/policies/settled"](query)

    return asyncio.run(run())


def test_what_is_seen_is_the_stores_number() -> None:
    store = Store()
    settled = Settled(store.current())
    assert settled.seen() == 0
    store.put(GENERATION, MANIFESTS, 7)
    assert (settled.seen(), settled.number) == (7, 0), "nothing is programmed by being seen"


def test_who_waits_is_told_at_once_or_when_it_is_there() -> None:
    settled = Settled(Store().current())
    assert json.loads(asked(settled, "generation=0").body) == {"generation": 0}
    settled.reached(5)
    assert json.loads(asked(settled, "generation=4").body) == {"generation": 5}
    found = asked(settled, "generation=6&patience=5", after=0.05, number=6)
    assert (found.status, json.loads(found.body)) == (200, {"generation": 6})


def test_a_lesser_number_wakes_nobody_up_for_good() -> None:
    found = asked(Settled(Store().current()), "generation=6&patience=0.2", after=0.05, number=5)
    assert found.status == 503


@pytest.mark.parametrize(
    ("trouble", "said"),
    [("the kernel refuses", "the kernel refuses"), ("", "the store is at 3, the kernel at 0")],
)
def test_who_waits_in_vain_is_told_why(trouble: str, said: str) -> None:
    store = Store()
    store.put(GENERATION, MANIFESTS, 3)
    found = asked(Settled(store.current(), lambda: trouble), "generation=3&patience=0.01")
    assert found.status == 503
    assert found.body == f"change 3 is not in the kernel after 0.01 s: {said}\n"


@pytest.mark.parametrize("query", ["generation=x", "generation=1&patience=x", "generation=-1", "patience=-1"])
def test_what_makes_no_sense_is_refused(query: str) -> None:
    assert asked(Settled(Store().current()), query).status == 400
