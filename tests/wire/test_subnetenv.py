"""subnet.env: flannel's text both ways."""

from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pycni.errors import ConfigError
from pycni.model.podnet import PodNetwork
from pycni.wire.subnetenv import decode_subnet_env, encode_subnet_env, previous_subnets

NET, SUBNET = ip_network("10.5.0.0/16"), ip_network("10.5.34.0/24")
NET6, SUBNET6 = ip_network("fd00:1::/48"), ip_network("fd00:1:0:5::/64")
V4 = "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.34.1/24\n"
V6 = "FLANNEL_IPV6_NETWORK=fd00:1::/48\nFLANNEL_IPV6_SUBNET=fd00:1:0:5::1/64\n"


@pytest.mark.parametrize(
    ("text", "net"),
    [
        pytest.param(
            V4 + "FLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n",
            PodNetwork(subnets=(SUBNET,), networks=(NET,), mtu=1450, ip_masq=True),
            id="IPv4",
        ),
        pytest.param(
            V6 + "FLANNEL_MTU=1430\nFLANNEL_IPMASQ=false\n",
            PodNetwork(subnets=(SUBNET6,), networks=(NET6,), mtu=1430),
            id="IPv6",
        ),
        pytest.param(
            V4 + V6 + "FLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n",
            PodNetwork(subnets=(SUBNET, SUBNET6), networks=(NET, NET6), mtu=1450),
            id="dual",
        ),
    ],
)
def test_both_ways(text, net):
    assert encode_subnet_env(net) == text
    assert decode_subnet_env(text) == net


@pytest.mark.parametrize(
    ("text", "subnets"),
    [
        ("", (None, None)),
        ("# nothing\n\nHELLO\n", (None, None)),
        (V4, (SUBNET, None)),
        (V4 + V6, (SUBNET, SUBNET6)),
        ('export FLANNEL_SUBNET="10.5.34.1/24"\r\n', (SUBNET, None)),
        ("FLANNEL_SUBNET=10.5.34.0/24\n", (SUBNET, None)),
        ("FLANNEL_SUBNET=\n", (None, None)),
        ("FLANNEL_NETWORK=10.5.0.0/16, 10.6.0.0/16\nFLANNEL_SUBNET='10.5.34.1/24'", (SUBNET, None)),
    ],
    ids=[
        "empty",
        "no line of ours",
        "IPv4",
        "dual",
        "export and quotes",
        "base address",
        "empty value",
        "list",
    ],
)
def test_previous_subnets(text, subnets):
    assert previous_subnets(text) == subnets


@pytest.mark.parametrize(
    ("line", "field"),
    [
        ("FLANNEL_SUBNET=10.5.34.1", "FLANNEL_SUBNET"),
        ("FLANNEL_SUBNET=hello/24", "FLANNEL_SUBNET"),
        ("FLANNEL_SUBNET=fd00::1/64", "FLANNEL_SUBNET"),
        ("FLANNEL_IPV6_SUBNET=10.5.34.1/24", "FLANNEL_IPV6_SUBNET"),
        ("FLANNEL_NETWORK=10.5.0.0/33", "FLANNEL_NETWORK"),
        ("FLANNEL_MTU=big", "FLANNEL_MTU"),
        ("FLANNEL_MTU=70000", "FLANNEL_MTU"),
        ("FLANNEL_MTU=" + "9" * 5000, "FLANNEL_MTU"),
        ("FLANNEL_IPMASQ=maybe", "FLANNEL_IPMASQ"),
    ],
)
def test_a_bad_value_names_its_line(line, field):
    with pytest.raises(ConfigError) as caught:
        decode_subnet_env(line)
    assert caught.value.field == field


names = st.sampled_from(
    ["FLANNEL_SUBNET", "FLANNEL_NETWORK", "FLANNEL_MTU", "FLANNEL_IPMASQ", "FLANNEL_IPV6_SUBNET"]
)


@given(st.lists(st.tuples(names, st.text(max_size=20)), max_size=5))
def test_any_text_is_read_or_is_a_config_error(lines):
    try:
        decode_subnet_env("\n".join(f"{name}={value}" for name, value in lines))
    except ConfigError:
        return
