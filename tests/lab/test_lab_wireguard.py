"""pycnictl wireguard on a lab: keys of all nodes changed, one after the other, with etcd between them."""

from __future__ import annotations

import json

from .conftest import LabMaker
from .lab_tools import ctl


def keys(name: str, *words: str) -> dict[str, str]:
    done = ctl("wireguard", "--name", name, "--json", *words)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert not any(item["following"] for item in found)
    return {item["node"]: item["key"] for item in found}


def test_keys_of_all_nodes_change_and_pods_go_on_talking(make_lab: LabMaker) -> None:
    lab = make_lab(nodes=2, pods=1, family="dual", backend="wireguard")
    name = lab.spec.name
    before = keys(name)
    assert len({*before.values()}) == 2
    target = next(str(address) for pod in lab.pods() if pod.name == "pod2" for address in pod.ips)
    with lab.traffic("pod1", target) as stream:
        assert stream.wait_answered(20, 20)
        after = keys(name, "--rotate", "--timeout", "60")
        assert stream.wait_answered(20, 20)
    print(stream.report())
    assert after.keys() == before.keys()
    assert not set(after.values()) & set(before.values())
    assert keys(name) == after
    matrix = lab.matrix()
    assert matrix.failed() == []
