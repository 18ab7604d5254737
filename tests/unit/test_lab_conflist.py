"""The runtime's side of a conflist: what libcni accepts and what it hands to plugins."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pycni.errors import ConfigError
from pycni.lab.conflist import execution_conf, parse_list


def listing(**changes: Any) -> bytes:
    value = {"cniVersion": "1.0.0", "name": "net", "plugins": [{"type": "one"}], **changes}
    return json.dumps({key: item for key, item in value.items() if item is not None}).encode()


@pytest.mark.parametrize(
    ("changes", "version"),
    [
        pytest.param({}, "1.0.0", id="single"),
        pytest.param({"cniVersions": ["0.3.1", "1.1.0", "1.0.0"]}, "1.1.0", id="newest of several"),
        pytest.param({"cniVersions": ["0.4.0"]}, "1.0.0", id="the single one counts too"),
        pytest.param({"cniVersions": ["1.2.0", "2.0.0"]}, "1.0.0", id="newer than this runtime is left out"),
        pytest.param(
            {"cniVersion": None, "cniVersions": ["0.4.0", "0.10.0"]}, "0.10.0", id="compared as numbers"
        ),
        pytest.param({"cniVersion": None}, "0.1.0", id="none given"),
    ],
)
def test_the_newest_common_version_is_used(changes: dict[str, Any], version: str) -> None:
    assert parse_list(listing(**changes)).version == version


@pytest.mark.parametrize(
    ("raw", "named"),
    [
        pytest.param(b"{", "content", id="not JSON"),
        pytest.param(b"[]", "content", id="not an object"),
        pytest.param(listing(name=None), "name", id="no name"),
        pytest.param(listing(name="a/b"), "name", id="name with a slash"),
        pytest.param(listing(plugins=[]), "plugins", id="no plugins"),
        pytest.param(listing(plugins={}), "plugins", id="plugins is no list"),
        pytest.param(listing(plugins=[{"type": "../sh"}]), r"plugins\[0\].type", id="type is a path"),
        pytest.param(listing(plugins=["x"]), r"plugins\[0\].type", id="plugin is no object"),
        pytest.param(listing(cniVersion="1.x"), "cniVersion", id="bad version"),
        pytest.param(listing(cniVersion="9.0.0"), "cniVersions", id="nothing old enough"),
        pytest.param(listing(disableCheck="maybe"), "disableCheck", id="bad flag"),
    ],
)
def test_bad_lists_are_refused_naming_the_key(raw: bytes, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        parse_list(raw)


@pytest.mark.parametrize("value", [True, "true", "True", "TRUE"])
def test_flags_may_be_strings(value: object) -> None:
    network = parse_list(listing(disableCheck=value, disableGC=value))
    assert network.disable_check
    assert network.disable_gc


def test_plugins_of_the_networks_folder_follow_unless_forbidden() -> None:
    extra = [b'{"type": "two"}']
    assert [item["type"] for item in parse_list(listing(), extra).plugins] == ["one", "two"]
    only = parse_list(listing(loadOnlyInlinedPlugins=True), extra)
    assert [item["type"] for item in only.plugins] == ["one"]


def test_a_plugin_gets_its_object_with_only_the_capabilities_it_declares() -> None:
    plugin = {"type": "one", "x": 1, "capabilities": {"ips": True, "mac": False}}
    network = parse_list(listing(plugins=[plugin]))
    conf = execution_conf(
        network,
        network.plugins[0],
        prev_result={"ips": []},
        capability_args={"ips": ["10.0.0.1"], "mac": "aa:bb:cc:dd:ee:ff", "bandwidth": {}},
    )
    assert json.loads(conf) == {
        "type": "one",
        "x": 1,
        "name": "net",
        "cniVersion": "1.0.0",
        "prevResult": {"ips": []},
        "runtimeConfig": {"ips": ["10.0.0.1"]},
    }


def test_gc_names_attachments_under_both_keys() -> None:
    network = parse_list(listing())
    conf = json.loads(execution_conf(network, network.plugins[0], valid_attachments=[("c1", "eth0")]))
    named = [{"containerID": "c1", "ifname": "eth0"}]
    assert conf["cni.dev/valid-attachments"] == conf["cni.dev/attachments"] == named
    empty = json.loads(execution_conf(network, network.plugins[0], valid_attachments=[]))
    assert empty["cni.dev/valid-attachments"] == []
