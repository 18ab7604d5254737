"""A running agent under malformed input of every kind: an answer or one clear log line each; it stays whole.

The codecs see all of these alone in tests/wire and tests/unit; here the process that pods depend on gets them.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pycni.kernel import netns
from pycni.wire.cniframe import RequestReader, decode_reply, encode_request
from tests.cni.callers import addresses_in
from tests.cni.node import DUAL, ROOT, AgentNode
from tests.cni.remains import sh, until
from tests.cni.runtimes import inside
from tests.unit.test_netconf import BAD as BAD_NETCONFS
from tests.unit.test_settings import FILES, REFUSALS
from tests.wire.cni_cases import CASES, CONF, ENVIRONMENT, environment_of
from tests.wire.test_cni_malformed import ANY_TEXT, COMMAND, KEYS, TREE
from tests.wire.test_lease import BAD_KEYS, BAD_VALUES, VALUE

KEY = "/coreos.com/network"
LINE = re.compile(r"\d{4}-\d\d-\d\dT[\d:.]+Z (DEBUG|INFO|WARNING|ERROR|CRITICAL) [\w.-]+: ")
NET = {"cniVersion": "1.1.0", "name": "net", "type": "pycni"}


@pytest.fixture
def whole(node: AgentNode) -> Iterator[AgentNode]:
    """The agent is the same process afterwards, serves, and wrote nothing but lines."""
    agent, since = node.agent, len(log(node))
    yield node
    assert node.agent is agent
    assert agent is not None
    assert agent.poll() is None
    until(lambda: node.cni("STATUS", NET) == (0, None), lambda: log(node)[-2000:])
    text = log(node)[since:]
    assert "Traceback" not in text
    assert "unexpected" not in text
    assert [line for line in text.splitlines() if not LINE.match(line)] == []


def log(node: AgentNode) -> str:
    return (node.folder / "pycnid.log").read_text()


def put(node: AgentNode, key: str, value: bytes) -> None:
    etcdctl = [*inside(node.name), "etcdctl", f"--endpoints={node.etcd.endpoint}"]
    subprocess.run(
        [*etcdctl, "put", "--", key],
        input=value,
        env={**os.environ, "ETCDCTL_API": "3"},
        check=True,
        capture_output=True,
    )


def as_bytes(value: Any) -> bytes:
    return value if isinstance(value, bytes) else json.dumps(value).encode()


def test_every_malformed_net_conf_is_one_line_and_the_last_good_one_stays(whole: AgentNode) -> None:
    before = sh(whole, "ip -d addr show dev flannel.1; ip route")
    # etcdctl takes an empty value for one that is missing; a blank is as little JSON.
    for what, conf, field in BAD_NETCONFS:
        since = len(log(whole))
        put(whole, f"{KEY}/config", as_bytes(conf) or b" ")
        until(lambda since=since: "/config: " in log(whole)[since:], lambda what=what: what, 3)
        lines = [line for line in log(whole)[since:].splitlines() if "/config: " in line]
        assert len(lines) == 1, what
        assert f"net-conf: {field}=" in lines[0], what
    assert whole.cni("STATUS", NET) == (0, None)
    assert sh(whole, "ip -d addr show dev flannel.1; ip route") == before
    put(whole, f"{KEY}/config", json.dumps(DUAL).encode())


IMPOSSIBLE = [
    {**DUAL, "Network": "10.99.0.0/16"},
    {**DUAL, "EnableIPv6": False},
    {**DUAL, "Backend": {"Type": "wireguard"}},
    {**DUAL, "Backend": {"Type": "vxlan", "MTU": 9000}},
    {**DUAL, "Backend": {"Type": "vxlan", "VNI": 7, "Port": 1}},
    {**DUAL, "SubnetLen": 20},
]


def test_well_formed_net_confs_that_cannot_be_followed_end_nothing(whole: AgentNode) -> None:
    for conf in IMPOSSIBLE:
        since = len(log(whole))
        put(whole, f"{KEY}/config", json.dumps(conf).encode())
        until(lambda since=since: "net-conf" in log(whole)[since:], lambda conf=conf: conf, 3)
    time.sleep(0.3)
    put(whole, f"{KEY}/config", json.dumps(DUAL).encode())


def test_every_malformed_lease_record_is_one_line(whole: AgentNode) -> None:
    own = re.findall(r"subnets/(\S+)", whole.etcdctl("get", "--prefix", "--keys-only", f"{KEY}/subnets/"))
    names = [name for name in (f"10.244.{n}.0-24" for n in range(100, 200)) if not own[0].startswith(name)]
    records = [(what, name, VALUE) for what, name in BAD_KEYS]
    records += [(what, names.pop(), value or b" ") for what, value in BAD_VALUES]
    before, since = sh(whole, "bridge fdb show dev flannel.1; ip route"), len(log(whole))
    with ThreadPoolExecutor(2) as pool:
        for _ in pool.map(lambda item: put(whole, f"{KEY}/subnets/{item[1]}", item[2]), records):
            pass
    try:
        until(
            lambda: log(whole)[since:].count("ignoring etcd record") >= len(records),
            lambda: (len(records), log(whole)[since:]),
            3,
        )
        assert log(whole)[since:].count("ignoring etcd record") == len(records)
        assert sh(whole, "bridge fdb show dev flannel.1; ip route") == before
    finally:
        for _, name, _ in records:
            whole.etcdctl("del", "--", f"{KEY}/subnets/{name}")


def ask(node: AgentNode, frame: bytes, fd: int | None = None) -> tuple[int, bytes]:
    """What the agent answers to a frame on its socket; -1: nothing."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(10)
        sock.connect(str(node.socket))
        sent = socket.send_fds(sock, [frame], [] if fd is None else [fd])
        try:
            sock.sendall(frame[sent:])
            sock.shutdown(socket.SHUT_WR)
        except (BrokenPipeError, OSError):
            pass  # refused before its end
        answer = b""
        while data := sock.recv(1 << 16):
            answer += data
    return decode_reply(answer) if answer else (-1, b"")


@pytest.fixture(scope="module")
def pod(node: AgentNode) -> Iterator[int]:
    """An open namespace in which nothing may be left."""
    name = f"{node.name}f"
    netns.create(name)
    fd = netns.open_netns(netns.path(name))
    try:
        yield fd
        assert addresses_in(name) == set()
    finally:
        os.close(fd)
        netns.delete(name)


def nothing_reserved(node: AgentNode) -> bool:
    files = [file.name for file in node.ipam.glob("*/*")] if node.ipam.is_dir() else []
    left = [name for name in files if name[0].isdigit() or ":" in name]
    return not left and not os.listdir(node.folder / "state" / "endpoints")


def judge(node: AgentNode, environment: dict[str, str], stdin: bytes, fd: int | None) -> int:
    """One call: a result, or an error by the specification; an ADD that worked is taken back."""
    code, output = ask(node, encode_request(environment, stdin), fd)
    if code:
        error = json.loads(output)
        assert error["code"] not in (0, 999), error
        assert error["msg"]
        return int(error["code"])
    if environment.get("CNI_COMMAND") == "ADD":
        assert json.loads(output)["cniVersion"]
        assert ask(node, encode_request({**environment, "CNI_COMMAND": "DEL"}, stdin), fd)[0] == 0
    return 0


def test_every_malformed_call_gets_its_code_from_the_running_agent(whole: AgentNode, pod: int) -> None:
    for case in CASES:
        assert judge(whole, environment_of(case), case.stdin, pod) == case.code, case.label
    until(lambda: nothing_reserved(whole), lambda: os.listdir(whole.ipam))


FUZZ = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@FUZZ
@given(command=COMMAND, changes=st.dictionaries(KEYS, TREE, max_size=5), opened=st.booleans())
def test_any_configuration_is_answered(
    whole: AgentNode, pod: int, command: str, changes: dict[str, object], opened: bool
) -> None:
    stdin = msgspec.json.encode(CONF | changes)
    judge(whole, {**ENVIRONMENT, "CNI_COMMAND": command}, stdin, pod if opened else None)


@FUZZ
@given(command=COMMAND, values=st.dictionaries(st.sampled_from([*ENVIRONMENT, "CNI_ARGS"]), ANY_TEXT))
def test_any_environment_is_answered(
    whole: AgentNode, pod: int, command: str, values: dict[str, str]
) -> None:
    environment = {**ENVIRONMENT, **values, "CNI_COMMAND": command}
    try:
        encode_request(environment, b"")
    except UnicodeEncodeError:  # lone surrogates are no bytes any process could send
        return
    judge(whole, environment, json.dumps(CONF).encode(), pod)


@FUZZ
@given(
    frame=st.binary(min_size=1, max_size=80)
    | st.binary(max_size=40).map(lambda tail: b"pycni1 10 20\n" + tail)
)
def test_any_bytes_on_the_socket_are_refused(whole: AgentNode, frame: bytes) -> None:
    code, output = ask(whole, frame)
    if code == -1:  # a caller that went away in the middle of its frame: nobody is there to answer
        RequestReader().feed(frame)
    else:
        assert code == 1
        assert json.loads(output)["code"] == 5


def test_after_all_of_it_nothing_is_half_made(whole: AgentNode) -> None:
    until(lambda: nothing_reserved(whole), lambda: list(whole.ipam.glob("*/*")))
    until(
        lambda: "veth" not in sh(whole, "ip -o link show type veth | grep -v eth0"),
        lambda: sh(whole, "ip link"),
    )


def refused(argv: list[str], variables: dict[str, str]) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "pycni.agent.main", "run", *argv],
        cwd=ROOT,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def test_every_malformed_setting_ends_the_start_with_its_lines(tmp_path: Path) -> None:
    wrong: list[tuple[str, list[str], dict[str, str], int]] = []
    for what, argv, lines in REFUSALS[::4]:
        wrong.append((f"flag: {what}", argv, {}, len(lines)))
    for number, (what, content, lines) in enumerate(case for case in FILES if case[2]):
        file = tmp_path / f"c{number}"
        file.write_bytes(as_bytes(content) if isinstance(content, bytes) else str(content).encode())
        wrong.append((f"file: {what}", [f"--config={file}"], {}, len(lines)))
    for name, value in {
        "PYCNID_HEALTHZ_PORT": "x",
        "FLANNELD_HEALTHZ_IP": "x",
        "PYCNID_NO_SUCH": "1",
        "PYCNID_CONFIG": "/no/such",
        "PYCNID_IFACE_REGEX": "(",
        "PYCNID_WORKERS": "1e9",
        "PYCNID_LOG_LEVEL": "\udcff",
        "PYCNID_NODE_NAME": "a\nb",
    }.items():
        wrong.append((f"variable: {name}", [], {name: value}, 1))
    with ThreadPoolExecutor(3) as pool:
        answers = pool.map(lambda one: refused(one[1], one[2]), wrong)
        for (what, _, _, count), (code, text) in zip(wrong, answers, strict=True):
            assert code == 2, (what, text)
            lines = text.splitlines()
            assert len(lines) == count, (what, text)
            assert all(line.startswith("pycnid: ") for line in lines), (what, text)
