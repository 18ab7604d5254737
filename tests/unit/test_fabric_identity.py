"""A VTEP's MAC: the device's, else the last lease's, else derived; never another one on the next start."""

from ipaddress import IPv4Address

import pytest

from pycni.agent.identity import choose_macs, derived_mac, machine_id
from pycni.model.fabric import VxlanLink
from pycni.model.family import Family
from pycni.model.lease import LeaseAttrs

DEVICE, LEASED = bytes.fromhex("0a0000000001"), bytes.fromhex("0a0000000002")
DERIVED = derived_mac("n1", "id", 1, Family.V4)


def link(mac=DEVICE, vni=1, name="flannel.1"):
    return {
        name: VxlanLink(
            name=name,
            vni=vni,
            port=8472,
            parent="eth0",
            local=IPv4Address("192.0.2.1").packed,
            mac=mac,
            mtu=1450,
        )
    }


def published(data=b'{"VNI":1,"VtepMAC":"0a:00:00:00:00:02"}'):
    return LeaseAttrs(public_ip=IPv4Address("192.0.2.1"), backend_type="vxlan", backend_data=data)


CHOICES = [
    pytest.param(link(), published(), DEVICE, id="the device's first"),
    pytest.param({}, published(), LEASED, id="then the lease's"),
    pytest.param({}, None, DERIVED, id="then a derived one"),
    pytest.param(link(vni=2), published(), LEASED, id="a device of another VNI does not count"),
    pytest.param(link(mac=bytes(6)), None, DERIVED, id="a device without MAC does not count"),
    pytest.param(
        {}, published(b'{"VNI":2,"VtepMAC":"0a:00:00:00:00:02"}'), DERIVED, id="a lease of another VNI"
    ),
    pytest.param({}, published(b"{}"), DERIVED, id="a lease that says no MAC"),
    pytest.param({}, published(None), DERIVED, id="a lease of another backend"),
]


@pytest.mark.parametrize(("links", "lease", "expected"), CHOICES)
def test_the_mac_is(links, lease, expected):
    chosen = choose_macs("n1", "id", 1, [Family.V4], links=links, published=lease)
    assert chosen == {"flannel.1": expected}


def test_a_derived_mac_is_local_unicast_and_differs_by_everything_it_is_derived_from():
    parts = [("n1", "id", 1, Family.V4), ("n2", "id", 1, Family.V4), ("n1", "other", 1, Family.V4)]
    parts += [("n1", "id", 2, Family.V4), ("n1", "id", 1, Family.V6), ("n", "1id", 1, Family.V4)]
    macs = [derived_mac(*part) for part in parts]
    assert len(set(macs)) == len(parts)
    assert all(mac[0] & 3 == 2 and len(mac) == 6 for mac in macs)


def test_a_derived_mac_is_fixed_for_ever():
    assert derived_mac("n1", "id", 1, Family.V4).hex(":") == "ee:17:fa:53:ab:06"


def test_a_machine_without_id_is_no_error(tmp_path):
    assert machine_id(str(tmp_path / "none")) == ""
    (tmp_path / "id").write_text("abc\n")
    assert machine_id(str(tmp_path / "id")) == "abc"
