"""kube-router's annotations of nodes: what they mean, and what is said of those nobody can use."""

from __future__ import annotations

import base64
import ipaddress

import pytest

from pycni.model.kube import KubeNode, Meta
from pycni_bgp.annotations import NodeSettings, PeerWish, node_settings
from pycni_bgp.model import Bfd, Secret

PASSWORD = base64.b64encode(b"s3cret!").decode()


def _node(**annotations: str) -> KubeNode:
    found = {f"kube-router.io/{key}": value for key, value in annotations.items()}
    return KubeNode(
        meta=Meta(name="a", annotations=found),
        pod_cidrs=("10.1.0.0/24",),
        internal_ips=("192.0.2.1", "2001:db8::1"),
    )


def _packed(text: str) -> bytes:
    return ipaddress.ip_address(text).packed


def _read(**annotations: str) -> tuple[NodeSettings, list[str]]:
    problems: list[str] = []
    return node_settings(_node(**annotations), problems), problems


ROUTER = PeerWish(address=_packed("192.0.2.9"), asn=65001)
PEERS = f"""
- remoteip: 192.0.2.9
  remoteasn: 65001
- remoteip: 2001:db8::9
  remoteasn: 4200000000
  localip: 2001:db8::1
  password: {PASSWORD}
  port: 1179
  bfd: {{enabled: true, detection_multiplier: 5, required_min_rx_interval: 300}}
"""


def test_a_node_without_annotations_has_its_addresses_and_pod_cidrs() -> None:
    found, problems = _read()
    assert found == NodeSettings(
        name="a",
        addresses=(_packed("192.0.2.1"), _packed("2001:db8::1")),
        pod_cidrs=(ipaddress.ip_network("10.1.0.0/24"),),
    )
    assert not problems


@pytest.mark.parametrize(
    ("key", "value", "field", "wanted"),
    [
        ("node.asn", "64999", "asn", 64999),
        ("node.asn", "64512.7", "asn", 64512 * 65536 + 7),
        ("node.bgp.communities", "64512:1, no-export,64512:1", "communities", ("64512:1", "no-export")),
        ("node.bgp.communities", "4227858442", "communities", ("64512:10",)),
        ("node.bgp.communities", "64512:1:2", "communities", ("64512:1:2",)),
        ("node.bgp.customimportreject", "10.9.0.0/16", "reject", (ipaddress.ip_network("10.9.0.0/16"),)),
        ("rr.server", "42", "reflector", bytes((0, 0, 0, 42))),
        ("rr.client", "1.2.3.4", "client", bytes((1, 2, 3, 4))),
        ("bgp-local-addresses", "192.0.2.1", "listen", (_packed("192.0.2.1"),)),
        ("pod-cidr", "10.2.0.0/24", "pod_cidrs", (ipaddress.ip_network("10.2.0.0/24"),)),
        (
            "pod-cidrs",
            "10.2.0.0/24,2001:db8:2::/64",
            "pod_cidrs",
            (ipaddress.ip_network("10.2.0.0/24"), ipaddress.ip_network("2001:db8:2::/64")),
        ),
    ],
)
def test_a_value_is_understood(key: str, value: str, field: str, wanted: object) -> None:
    found, problems = _read(**{key: value})
    assert getattr(found, field) == wanted
    assert not problems


def test_peers_are_a_yaml_list() -> None:
    found, problems = _read(peers=PEERS)
    assert found.peers == (
        ROUTER,
        PeerWish(
            address=_packed("2001:db8::9"),
            asn=4200000000,
            port=1179,
            local_address=_packed("2001:db8::1"),
            password=Secret("s3cret!"),
            bfd=Bfd(multiplier=5, receive_ms=300),
        ),
    )
    assert not problems


def test_peers_in_the_old_keys_are_lists_side_by_side() -> None:
    found, problems = _read(
        **{
            "peer.ips": "192.0.2.9,192.0.2.10",
            "peer.asns": "65001,65002",
            "peer.ports": ",1179",
            "peer.passwords": f"{PASSWORD},",
        }
    )
    assert [(wish.asn, wish.port, wish.password) for wish in found.peers] == [
        (65001, 179, Secret("s3cret!")),
        (65002, 1179, None),
    ]
    assert not problems


def test_the_path_is_prepended_as_often_as_said() -> None:
    found, _ = _read(**{"path-prepend.as": "64512", "path-prepend.repeat-n": "3"})
    assert found.prepend == (64512, 3)


@pytest.mark.parametrize(
    ("annotations", "words"),
    [
        ({"node.asn": "0"}, ("node.asn", "'0'", "AS number")),
        ({"node.asn": "4294967296"}, ("AS number",)),
        ({"node.asn": "65536.1"}, ("AS number",)),
        ({"node.bgp.communities": "70000:1"}, ("'70000:1'", "community")),
        ({"node.bgp.communities": "x"}, ("community",)),
        ({"node.bgp.customimportreject": "10.0.0.1/8"}, ("'10.0.0.1/8'", "host bits")),
        ({"rr.server": "4294967296"}, ("cluster id",)),
        ({"path-prepend.as": "64512"}, ("path-prepend.repeat-n", "goes together")),
        ({"path-prepend.as": "64512", "path-prepend.repeat-n": "0"}, ("1 to 255",)),
        ({"peers": "{"}, ("peers", "not YAML")),
        ({"peers": "a: 1"}, ("not a list",)),
        ({"peers": "[7]"}, ("peers[0]", "'int'", "not a mapping")),
        ({"peers": "[{remoteip: 192.0.2.9}]"}, ("peers[0]", "'192.0.2.9'", "remoteasn is missing")),
        ({"peers": "[{remoteip: router, remoteasn: 1}]"}, ("remoteip: not an address",)),
        ({"peers": "[{remoteip: 192.0.2.9, remoteasn: 1, port: 0}]"}, ("port: not a number",)),
        ({"peers": "[{remoteip: 192.0.2.9, remoteasn: 1, porf: 1}]"}, ("unknown field porf",)),
        ({"peers": "[{remoteip: 192.0.2.9, remoteasn: 1, bfd: 1}]"}, ("bfd: not a mapping",)),
        ({"peers": "[{remoteip: 192.0.2.9, remoteasn: 1, bfd: {prt: 1}}]"}, ("bfd: unknown field prt",)),
        ({"peer.ips": "192.0.2.9"}, ("peer.asns", "0 entries for 1 peers")),
        ({"peer.ips": "192.0.2.9", "peer.asns": "1", "peer.ports": "99999"}, ("peer.ports",)),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else None,
)
def test_what_nobody_can_use_is_named(annotations: dict[str, str], words: tuple[str, ...]) -> None:
    found, problems = _read(**annotations)
    assert len(problems) == 1
    assert problems[0].startswith("node a: annotation kube-router.io/")
    assert all(word in problems[0] for word in words), problems[0]
    assert not found.peers


@pytest.mark.parametrize(
    "annotations",
    [
        {"peers": "[{remoteip: 192.0.2.9, remoteasn: 1, password: hunter2}]"},
        {"peers": "hunter2: ["},
        {"peer.ips": "192.0.2.9", "peer.asns": "1", "peer.passwords": "hunter2"},
        {"peer.ips": "192.0.2.9", "peer.asns": "1", "peer.passwords": "hunter2,hunter2"},
    ],
    ids=["listed", "no yaml", "old style", "of wrong length"],
)
def test_a_password_is_in_no_problem_line(annotations: dict[str, str]) -> None:
    _, problems = _read(**annotations)
    assert len(problems) == 1
    assert "hunter2" not in problems[0]


def test_of_two_entries_for_one_router_the_first_counts() -> None:
    found, problems = _read(
        peers="[{remoteip: 192.0.2.9, remoteasn: 65001}, {remoteip: 192.0.2.9, remoteasn: 65002}]"
    )
    assert found.peers == (ROUTER,)
    assert "given twice" in problems[0]


def test_a_secret_shows_itself_nowhere() -> None:
    secret = Secret("s3cret!")
    assert "s3cret" not in f"{secret} {secret!r} {secret!s} {(secret,)}"
    assert secret.reveal() == "s3cret!"
    assert "s3cret" not in repr(PeerWish(address=b"\1\2\3\4", asn=1, password=secret))
