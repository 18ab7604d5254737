"""When a node announces no services, and whether neighbours are to forget it when the agent stops."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import msgspec
import pytest

from pycni.errors import ConfigError
from pycni.model.kube import KubeNode, Meta
from pycni.wire.kube import decode_object
from pycni_bgp import machine
from pycni_bgp.drain import LABEL, reasons
from pycni_bgp.files import Drained
from pycni_bgp.settings import BgpSettings

NODE = {"kind": "Node", "apiVersion": "v1", "metadata": {"name": "a"}}


@pytest.mark.parametrize(
    ("node", "by_hand", "unschedulable", "wanted"),
    [
        (None, False, False, ()),
        ({}, False, False, ()),
        (None, True, False, ("pycnictl bgp drain",)),
        ({"metadata": {"name": "a", "labels": {LABEL: "false"}}}, False, False, (f"label {LABEL}",)),
        (
            {"metadata": {"name": "a", "deletionTimestamp": "2026-01-01T00:00:00Z"}},
            True,
            False,
            ("pycnictl bgp drain", "it is being deleted"),
        ),
        ({"spec": {"unschedulable": True}}, False, False, ()),
        ({"spec": {"unschedulable": True}}, False, True, ("it is unschedulable",)),
        ({"spec": {"unschedulable": None, "taints": None}}, False, True, ()),
        (
            {"spec": {"taints": [{"key": "node.kubernetes.io/unreachable", "effect": "NoExecute"}]}},
            False,
            True,
            (),
        ),
        (
            {
                "spec": {
                    "taints": [
                        {"key": "x", "effect": "NoSchedule"},
                        {"key": "node.kubernetes.io/out-of-service", "effect": "NoExecute"},
                    ]
                }
            },
            False,
            False,
            ("taint node.kubernetes.io/out-of-service",),
        ),
        (
            {"spec": {"taints": [{"key": "ToBeDeletedByClusterAutoscaler", "value": "1795260930"}]}},
            False,
            False,
            ("taint ToBeDeletedByClusterAutoscaler",),
        ),
    ],
    ids=[
        "no node",
        "plain",
        "by hand",
        "label, whatever its value",
        "deleted",
        "cordoned",
        "cordoned, which counts",
        "nulls",
        "kubelet is silent",
        "shut down",
        "autoscaler",
    ],
)
def test_a_node_is_drained_for_these_reasons(
    node: dict[str, object] | None, by_hand: bool, unschedulable: bool, wanted: tuple[str, ...]
) -> None:
    found = None
    if node is not None:
        found = decode_object(json.dumps({**NODE, **node}).encode())[1]
        assert isinstance(found, KubeNode)
    settings = BgpSettings(drain_unschedulable=unschedulable)
    assert reasons(found, settings, by_hand=by_hand) == wanted


def test_nodes_that_differ_in_taints_alone_are_not_equal() -> None:
    plain = KubeNode(meta=Meta(name="a"))
    assert plain != msgspec.structs.replace(plain, taints=("x",))


def test_a_drain_outlives_the_agent(tmp_path: Path) -> None:
    folder = str(tmp_path / "bgp")
    assert not Drained(folder).on
    first = Drained(folder)
    first.set(on=True)
    assert first.on
    assert Drained(folder).on
    Drained(folder).set(on=False)
    assert not Drained(folder).on
    Drained(folder).set(on=False)
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="file"):
        Drained(str(tmp_path / "file" / "bgp")).set(on=True)


@pytest.mark.parametrize(
    ("booted", "says", "wanted"),
    [
        (True, "stopping\n", True),
        (True, "running\n", False),
        (True, "degraded\n", False),
        (False, "stopping\n", False),
        (True, None, False),
    ],
    ids=["going down", "running", "degraded", "no systemd", "no answer"],
)
def test_a_machine_that_goes_down_is_known(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, booted: bool, says: str | None, wanted: bool
) -> None:
    monkeypatch.setattr(machine, "BOOTED", str(tmp_path if booted else tmp_path / "none"))

    def run(words: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        if says is None:
            raise FileNotFoundError(words[0])
        return subprocess.CompletedProcess(words, 1, says, "")

    monkeypatch.setattr(subprocess, "run", run)
    assert machine.stopping() is wanted
