"""What a second kernel (Debian's user-mode 6.1) does with pods: run as its init's only program, answers in one line.

That kernel has VLAN filtering, which others lack, and does not echo links (NLM_F_ECHO came with 6.2).
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any

from pycni.kernel import netns as namespaces
from pycni.model.cni import Bandwidth
from tests.netns.podenv import Env, links, node, pings, run

_NUMBERS = itertools.count()


def make() -> str:
    name = f"pyt-uml-{next(_NUMBERS)}"
    namespaces.create(name)
    return name


def plain(env: Env) -> dict[str, Any]:
    one, two = env.attach((4, 6)), env.attach((4, 6))
    made = {
        "ping": [pings(one, target) for target in (two.v4(), two.v6(), "10.1.2.1", "fd00:1:2::1")],
        "check": env.driver.check(one.plan, one.fd),
    }
    env.detach(one)
    env.detach(two)
    made["left"] = [name for name in links() if name.startswith("veth")]
    return made


def vlans(env: Env) -> dict[str, Any]:
    one, two = env.attach(vlan=5), env.attach(vlan=5)
    other = env.pod()
    other.v4 = lambda: "10.1.9.9"
    env.driver.attach(env.plan(other, podnet=None, network="other", vlan=6), other.fd)
    other.run("ip addr add 10.1.2.99/24 dev eth0")
    made = {
        "same": pings(one, two.v4()),
        "gateway": pings(one, "10.1.2.1"),
        "other": pings(one, "10.1.2.99", wait=0.3),
        "other's gateway": pings(other, "10.1.9.1"),
        "check": env.driver.check(one.plan, one.fd),
    }
    for name, command in (("down", "ip link set cni0.5 down"), ("deleted", "ip link del cni0.5")):
        run(command)
        made[f"after leg {name}"] = pings(env.attach(vlan=5), "10.1.2.1")
    return made


def shaping(env: Env) -> dict[str, Any]:
    both = Bandwidth(ingress_rate=10**8, ingress_burst=10**7, egress_rate=10**8, egress_burst=10**7)
    pod = env.attach(bandwidth=both)
    return {"ping": pings(pod, "10.1.2.1"), "check": env.driver.check(pod.plan, pod.fd)}


def main() -> None:
    parts: dict[str, Callable[[Env], dict[str, Any]]] = {"plain": plain, "vlans": vlans, "shaping": shaping}
    found: dict[str, Any] = {}
    for name, part in parts.items():
        try:
            with node(make) as env:
                found[name] = part(env)
        except BaseException:
            found[name] = traceback.format_exc()
    print("ANSWER", json.dumps(found))
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
