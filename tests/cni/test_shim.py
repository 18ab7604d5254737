"""The executable itself, run as a runtime runs it, against a server in this process."""

from __future__ import annotations

import ast
import json
import os
import re
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest

from pycni import __version__
from pycni.agent.cni_netns import Namespaces
from pycni.agent.cni_server import CniServer
from pycni.model.cni import VERSIONS
from pycni.wire.cniframe import encode_reply
from tests.unit.cni_fakes import Node
from tests.wire.cni_cases import CASES, environment_of

SHIM = Path(__file__).resolve().parents[2] / "cni-bin" / "pycni"
CONF = b'{"cniVersion":"0.4.0","name":"net"}'
Call = tuple[dict[str, str], bytes, int | None]


class Recorder:
    """Answers every call the same way and keeps what it got; the namespace as (device, inode)."""

    def __init__(self) -> None:
        self.answer = (0, b"done")
        self.calls: list[tuple[dict[str, str], bytes, tuple[int, int] | None]] = []

    def handle(self, environment: Mapping[str, str], stdin: bytes, netns_fd: int | None) -> tuple[int, bytes]:
        found = None if netns_fd is None else os.fstat(netns_fd)
        self.calls.append((dict(environment), stdin, None if found is None else (found.st_dev, found.st_ino)))
        return self.answer


@pytest.fixture
def ops() -> Recorder:
    return Recorder()


@pytest.fixture
def path(short_folder: Path, ops: Recorder) -> Iterator[str]:
    server = CniServer(str(short_folder / "cni.sock"), ops)
    server.start()
    yield str(short_folder / "cni.sock")
    server.stop()


def run(
    command: str,
    path: str | Path = "/nonexistent",
    stdin: bytes = CONF,
    shim: Path = SHIM,
    **env: str | bytes,
) -> tuple[int, bytes, bytes]:
    environment: dict[str, str | bytes] = {f"CNI_{key}": value for key, value in env.items()}
    if command:
        environment["CNI_COMMAND"] = command
    environment["PYCNI_SOCKET"] = str(path)
    done = subprocess.run(
        [shim],
        input=stdin,
        env=environment,
        capture_output=True,
        timeout=30,
        check=False,  # type: ignore[arg-type]
    )
    return done.returncode, done.stdout, done.stderr


def failure(answer: tuple[int, bytes, bytes]) -> dict[str, Any]:
    code, out, err = answer
    assert (code, err) == (1, b"")
    decoded: dict[str, Any] = json.loads(out)
    return decoded


# alone


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    "shape", ['{"cniVersion":"%s"}', ' { "x": 1, "cniVersion" : "%s" }\n'], ids=["libcni", "other"]
)
def test_version_needs_no_agent_and_answers_in_the_asked_version(version: str, shape: str) -> None:
    code, out, err = run("VERSION", stdin=(shape % version).encode())
    assert (code, err) == (0, b"")
    assert json.loads(out) == {"cniVersion": version, "supportedVersions": list(VERSIONS)}
    assert out.endswith(b"\n")


@pytest.mark.parametrize(
    "stdin", [b"", b"x", b"[]", b'{"cniVersion":7}', b'{"cniVersion":"9.0.0"}', b"[" * 100_000]
)
def test_version_answers_whatever_is_on_stdin(stdin: bytes) -> None:
    code, out, err = run("VERSION", stdin=stdin)
    assert (code, err) == (0, b"")
    assert json.loads(out) == {"cniVersion": "1.1.0", "supportedVersions": list(VERSIONS)}


def test_started_by_hand_it_says_what_it_is() -> None:
    code, out, err = run("")
    assert (code, out) == (0, b"")
    about, versions = err.decode().splitlines()
    assert about == f"CNI plugin pycni v{__version__}"
    assert versions == f"CNI protocol versions supported: {', '.join(VERSIONS)}"


@pytest.mark.parametrize("command", ["ADD", "DEL", "CHECK", "GC", "STATUS", "FROB"])
def test_without_an_agent_there_is_an_error_in_the_asked_version(command: str, short_folder: Path) -> None:
    answer = failure(run(command, short_folder / "none.sock"))
    assert answer["code"] == (50 if command == "STATUS" else 11)
    assert answer["cniVersion"] == "0.4.0"
    assert str(short_folder / "none.sock") in answer["details"]


@pytest.mark.parametrize(
    ("stdin", "version"),
    [
        (b"", "1.1.0"),
        (b"{", "1.1.0"),
        (b"[]", "1.1.0"),
        (b"{}", "0.1.0"),
        (b'{"cniVersion":[]}', "0.1.0"),
        (b"\xff", "1.1.0"),
    ],
)
def test_without_an_agent_any_stdin_is_answered(stdin: bytes, version: str) -> None:
    answer = failure(run("ADD", stdin=stdin))
    assert (answer["code"], answer["cniVersion"]) == (11, version)


@pytest.mark.parametrize("path", ["/" + "x" * 200, "/dev/null", "/proc/self/\udcff"])
def test_a_socket_that_cannot_be_one(path: str) -> None:
    assert failure(run("ADD", path))["code"] == 11


def test_a_closed_stdin_is_an_io_failure() -> None:
    done = subprocess.run(
        ["sh", "-c", f"exec {SHIM} <&-"], env={"CNI_COMMAND": "ADD"}, capture_output=True, check=False
    )
    assert failure((done.returncode, done.stdout, done.stderr))["code"] == 5


def test_version_does_not_need_stdin() -> None:
    done = subprocess.run(
        ["sh", "-c", f"exec {SHIM} <&-"], env={"CNI_COMMAND": "VERSION"}, capture_output=True, check=False
    )
    assert (done.returncode, json.loads(done.stdout)["cniVersion"]) == (0, "1.1.0")


# with an agent


@pytest.mark.parametrize("answer", [(0, b""), (0, b'{"x":1}\n'), (1, b'{"code":7}\n'), (0, b"x" * 3_000_000)])
def test_output_and_exit_code_are_the_agents(path: str, ops: Recorder, answer: tuple[int, bytes]) -> None:
    ops.answer = answer
    assert run("ADD", path) == (*answer, b"")


def test_variables_and_stdin_arrive_unchanged(path: str, ops: Recorder) -> None:
    stdin = os.urandom(5 << 20)
    code, _, _ = run("DEL", path, stdin, ARGS=b"A=\xff\xfe;B= x\n", CONTAINERID="c", EMPTY="")
    assert code == 0
    environment, got, _ = ops.calls[0]
    assert environment == {
        "CNI_COMMAND": "DEL",
        "CNI_ARGS": "A=\udcff\udcfe;B= x\n",
        "CNI_CONTAINERID": "c",
        "CNI_EMPTY": "",
    }
    assert got == stdin


@pytest.mark.parametrize(
    ("command", "passed"),
    [("ADD", True), ("CHECK", True), ("DEL", True), ("GC", False), ("STATUS", False), ("FROB", False)],
)
def test_the_namespace_is_opened_where_the_runtime_means_it(
    path: str, ops: Recorder, command: str, passed: bool
) -> None:
    run(command, path, NETNS="/proc/self/ns/net")
    found = os.stat("/proc/self/ns/net")
    assert ops.calls[0][2] == ((found.st_dev, found.st_ino) if passed else None)


@pytest.mark.parametrize("netns", ["", "/nonexistent", "/root\udcff"])
def test_a_namespace_that_is_gone_is_left_to_the_agent(path: str, ops: Recorder, netns: str) -> None:
    assert run("DEL", path, NETNS=netns)[0] == 0
    assert ops.calls[0][2] is None


def test_a_fifo_instead_of_a_namespace_does_not_block(path: str, short_folder: Path) -> None:
    os.mkfifo(short_folder / "fifo")
    assert run("ADD", path, NETNS=str(short_folder / "fifo"))[0] == 0


def test_a_reader_that_has_gone_does_not_matter(path: str) -> None:
    done = subprocess.run(
        ["sh", "-c", f"{SHIM} >&-; echo $? >&2"],
        input=CONF,
        env={"CNI_COMMAND": "ADD", "PYCNI_SOCKET": path},
        capture_output=True,
        check=False,
    )
    assert done.stderr == b"0\n"


# an agent that fails


@contextmanager
def listener(path: Path, serve: Callable[[socket.socket], None], backlog: int = 1) -> Iterator[None]:
    """A server that does with one connection what it is told."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
        sock.listen(backlog)

        def accept() -> None:
            connection, _ = sock.accept()
            with connection:
                serve(connection)

        thread = threading.Thread(target=accept)
        thread.start()
        yield
        thread.join()


def received(connection: socket.socket) -> None:
    time.sleep(0.05)
    connection.recv(1 << 20)


DEATHS: dict[str, Callable[[socket.socket], object]] = {
    "before reading": lambda _connection: None,
    "after reading": received,
    "in the header": lambda connection: (received(connection), connection.sendall(b"pycni1 0")),
    "in the output": lambda connection: (
        received(connection),
        connection.sendall(encode_reply(0, b"abcdef")[:-1]),
    ),
    "talking nonsense": lambda connection: (
        received(connection),
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n"),
    ),
    "with numbers that are none": lambda connection: (
        received(connection),
        connection.sendall(b"pycni1 x 0\n"),
    ),
}


@pytest.mark.parametrize("command", ["ADD", "STATUS"])
@pytest.mark.parametrize("death", DEATHS.values(), ids=DEATHS.keys())
def test_an_agent_dying_in_the_middle(
    short_folder: Path, death: Callable[[socket.socket], Any], command: str
) -> None:
    with listener(short_folder / "s", death):
        answer = failure(run(command, short_folder / "s"))
    assert answer["code"] == (50 if command == "STATUS" else 11)
    assert answer["cniVersion"] == "0.4.0"


def impatient(folder: Path) -> Path:
    """The shim with a timeout of one second."""
    copy = folder / "pycni"
    text, count = re.subn(r"^TIMEOUT_S = \d+$", "TIMEOUT_S = 1", SHIM.read_text(), flags=re.MULTILINE)
    assert count == 1
    copy.write_text(text)
    copy.chmod(0o755)
    return copy


def test_an_agent_that_hangs_is_given_up(short_folder: Path) -> None:
    with listener(short_folder / "s", lambda connection: (connection.recv(1), time.sleep(1.5))[1]):
        answer = failure(run("ADD", short_folder / "s", shim=impatient(short_folder)))
    assert answer["code"] == 11
    assert "1 s" in answer["details"]


def test_an_agent_that_does_not_take_the_request_is_given_up(short_folder: Path) -> None:
    with listener(short_folder / "s", lambda _connection: time.sleep(1.5)):
        answer = failure(
            run("ADD", short_folder / "s", stdin=b"x" * 10_000_000, shim=impatient(short_folder))
        )
    assert answer["code"] == 11


def test_an_agent_that_does_not_accept_is_given_up(short_folder: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(short_folder / "s"))
        sock.listen(0)
        waiting = socket.socket(socket.AF_UNIX)
        with waiting:
            waiting.connect(str(short_folder / "s"))
            assert failure(run("ADD", short_folder / "s", shim=impatient(short_folder)))["code"] == 11


# what it is made of


def test_it_imports_nothing_that_costs_time(path: str) -> None:
    """The good path of ADD: beyond what the interpreter itself loads only two built-in modules."""

    def loaded(script: Path) -> set[str]:
        done = subprocess.run(
            ["/usr/bin/python3", "-IS", "-X", "importtime", script],
            input=CONF,
            env={"CNI_COMMAND": "ADD", "PYCNI_SOCKET": path},
            capture_output=True,
            check=True,
        )
        return {line.rpartition(b"|")[2].strip().decode() for line in done.stderr.splitlines()}

    empty = Path(path).parent / "empty"
    empty.write_text("")
    assert loaded(SHIM) - loaded(empty) <= {"_socket", "posix"}


def test_its_constants_are_the_projects() -> None:
    constants = {
        node.targets[0].id: ast.literal_eval(node.value)
        for node in ast.parse(SHIM.read_text()).body
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and isinstance(node.value, ast.Constant | ast.Tuple)
    }
    assert constants["VERSION"] == __version__
    assert constants["SUPPORTED"] == VERSIONS
    assert constants["SOCKET"] == "/run/pycni/cni.sock"


def test_the_installer_finds_the_line_to_change() -> None:
    assert len(re.findall(r'^SOCKET = "/run/pycni/cni\.sock"$', SHIM.read_text(), flags=re.MULTILINE)) == 1
    assert SHIM.read_text().startswith("#!/usr/bin/python3 -IS\n")


# all of it together


class RealNamespaces(Namespaces):
    """The kernel's word about descriptors; nothing is entered."""

    def has_interface(self, fd: int, name: str) -> bool:
        return False


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    made = Node(tmp_path_factory.mktemp("node"), ip_network("10.1.2.0/24"))
    made.ops._namespaces = RealNamespaces()
    server = CniServer(str(made.folder / "s"), made.ops)
    server.start()
    yield made
    server.stop()
    made.close()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.label)
def test_malformed_calls_through_the_shim(node: Node, case: Any) -> None:
    variables = {key.removeprefix("CNI_"): value for key, value in environment_of(case).items()}
    answer = failure(run(variables.pop("COMMAND"), node.folder / "s", case.stdin, **variables))
    assert answer["code"] == case.code
    for word in case.words:
        assert word.replace("\udcff", "\\") in f"{answer['msg']} {answer.get('details', '')}"
    assert node.clean


def test_add_into_the_nodes_own_namespace_is_refused(node: Node) -> None:
    assert (
        failure(run("ADD", node.folder / "s", CONTAINERID="c", NETNS="/proc/self/ns/net", IFNAME="eth0"))[
            "code"
        ]
        == 8
    )
    assert node.clean
