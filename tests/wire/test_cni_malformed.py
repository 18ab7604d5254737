"""Every malformed call gets its code and a message that names what is wrong; nothing ever escapes as another error."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pycni.errors import CniError
from pycni.model.cni import VERSIONS, PluginConf
from pycni.wire.cni import answer_version, encode_error, parse_request
from pycni.wire.cniconf import parse_conf, parse_conf_for_removal
from tests.wire.cni_cases import CASES, CONF, ENVIRONMENT, Case, environment_of


def call(environment: dict[str, str], stdin: bytes) -> PluginConf:
    return parse_conf(parse_request(environment, stdin))


def test_there_are_more_than_a_hundred_cases() -> None:
    assert len(CASES) >= 150
    assert len({case.label for case in CASES}) == len(CASES)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.label)
def test_the_code_and_the_culprit_are_named(case: Case) -> None:
    with pytest.raises(CniError) as caught:
        call(environment_of(case), case.stdin)
    text = f"{caught.value.msg} {caught.value.details}"
    assert caught.value.code == case.code, text
    for word in case.words:
        assert word in text
    assert "\n" not in text
    reply = json.loads(encode_error(caught.value, answer_version(case.stdin)))
    assert reply["code"] == case.code
    assert reply["cniVersion"] in VERSIONS


REMOVABLE = [
    case
    for case in CASES
    if case.command == "ADD" and case.stdin.startswith(b'{"cniVersion": "1.1.0", "name": "net"')
]


@pytest.mark.parametrize("case", REMOVABLE, ids=lambda case: case.label)
def test_removal_reads_every_configuration_that_passes_the_gates(case: Case) -> None:
    environment = ENVIRONMENT | {"CNI_COMMAND": "DEL", "CNI_ARGS": case.environment.get("CNI_ARGS", "")}
    assert parse_conf_for_removal(parse_request(environment, case.stdin)).name == "net"


def outcome(call: Callable[[], PluginConf]) -> tuple[int, PluginConf | None, CniError | None]:
    try:
        return 0, call(), None
    except CniError as err:
        return err.code, None, err


def one_of_our_errors(environment: dict[str, str], stdin: bytes) -> None:
    code, conf, err = outcome(lambda: call(environment, stdin))
    assert code in {0, 1, 2, 4, 6, 7}
    if err is not None:
        assert json.loads(encode_error(err, answer_version(stdin)))["code"] == code
    else:
        assert conf is not None
        assert conf.name
    if environment.get("CNI_COMMAND") == "DEL":
        code, _, _ = outcome(lambda: parse_conf_for_removal(parse_request(environment, stdin)))
        assert code in {0, 1, 4, 6, 7}


ANY_TEXT = st.text(st.characters(blacklist_characters="\0"), max_size=20)
COMMAND = st.sampled_from(["ADD", "DEL", "CHECK", "GC", "STATUS", "VERSION", "", "X"])


@settings(max_examples=150, deadline=None)
@given(command=COMMAND, stdin=st.binary(max_size=200))
def test_any_bytes_on_stdin(command: str, stdin: bytes) -> None:
    one_of_our_errors(ENVIRONMENT | {"CNI_COMMAND": command}, stdin)


@settings(max_examples=150, deadline=None)
@given(command=COMMAND, values=st.dictionaries(st.sampled_from([*ENVIRONMENT, "CNI_ARGS"]), ANY_TEXT))
def test_any_environment(command: str, values: dict[str, str]) -> None:
    one_of_our_errors(ENVIRONMENT | values | {"CNI_COMMAND": command}, json.dumps(CONF).encode())


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_bytes_changed_in_a_configuration(data: st.DataObject) -> None:
    stdin = bytearray(data.draw(st.sampled_from([case.stdin for case in CASES if len(case.stdin) < 1000])))
    for _ in range(data.draw(st.integers(1, 4))):
        if stdin:
            stdin[data.draw(st.integers(0, len(stdin) - 1))] = data.draw(st.integers(0, 255))
    one_of_our_errors(ENVIRONMENT | {"CNI_COMMAND": data.draw(COMMAND)}, bytes(stdin))


WORDS = st.sampled_from(
    re.findall(
        r"\S*",
        """10.1.2.3 10.1.2.0/24 10.1.2.3/24 fd00::/64 fd00::1 0.0.0.0/0 ::ffff:10.0.0.1 ::/0 255.255.255.255/32 tcp
        02:00:00:00:00:01 host-local x 1.1.0 0.2.0 eth0 \u0664 \ud7ff""",
    )
)
SCALAR = st.one_of(
    st.none(), st.booleans(), st.integers(-2, 70000), st.integers(), st.floats(allow_nan=False), WORDS
)
KEYS = st.sampled_from(
    re.findall(
        r"\S+",
        """cniVersion name type bridge mtu hairpinMode isGateway isDefaultGateway vlan ipam ranges subnet rangeStart
        rangeEnd gateway exclude routes dst gw scope table runtimeConfig portMappings hostPort containerPort protocol
        hostIP bandwidth ingressRate ingressBurst ips mac dns servers ipRanges args cni labels prevResult ip4 ip address
        interfaces interface cni.dev/valid-attachments containerID ifname nameservers""",
    )
)
TREE = st.recursive(
    SCALAR,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(KEYS, inner, max_size=4)),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(command=COMMAND, changes=st.dictionaries(KEYS, TREE, max_size=6))
def test_any_tree_of_known_keys(command: str, changes: dict[str, object]) -> None:
    one_of_our_errors(ENVIRONMENT | {"CNI_COMMAND": command}, msgspec.json.encode(CONF | changes))


RANGES = st.lists(
    st.lists(st.dictionaries(st.sampled_from(["subnet", "rangeStart", "rangeEnd", "gateway"]), WORDS))
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(ranges=RANGES, version=st.sampled_from(VERSIONS))
def test_any_ranges_that_pass_are_consistent(ranges: list[object], version: str) -> None:
    stdin = msgspec.json.encode(CONF | {"cniVersion": version, "ipam": {"ranges": ranges}})
    try:
        conf = call(ENVIRONMENT | {"CNI_COMMAND": "ADD"}, stdin)
    except CniError:
        return
    for item in (item for inner in conf.ipam.range_sets for item in inner):
        assert item.start in item.subnet
        assert item.end in item.subnet
        assert int(item.start) <= int(item.end)
        assert item.gateway is not None
        assert item.gateway.version == item.subnet.version
