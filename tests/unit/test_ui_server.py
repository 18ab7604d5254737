"""Who gets what from the view's server: token, Host, origin, methods, paths, headers; and what it says when it cannot."""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import pytest

from pycni.cli import parse
from pycni.cli_agent import Agent
from pycni.kernel.linkcounts import LinkCount
from pycni.lab.topology import LabError
from pycni.trace.question import QuestionError
from pycni.tracing.eyes import Gathered
from pycni.ui.files import HEADERS, static_files
from pycni.ui.server import BODY_LIMIT, CONNECTIONS, UiServer
from pycni.ui.watch import Watch

from .ui_world import objects, world

ROOT = Path(__file__).parents[2]


class Eyes:
    nodes: ClassVar[dict[str, Any]] = {}

    def gather(self) -> Gathered:
        here = world()
        return Gathered(here, objects(here), {})


class Source:
    """A world that is not there."""

    title = "lab <b>x</b>"
    trouble: Exception | None = None

    def eyes(self, _words: object = ()) -> Eyes:
        if self.trouble is not None:
            raise self.trouble
        return Eyes()

    def agents(self) -> list[Agent]:
        return []

    def counts(self) -> dict[str, LinkCount]:
        return {"node1/eth0": LinkCount(1, 2, 3, 4, 5, 6)}

    def outside(self) -> list[Any]:
        return []


@pytest.fixture
def source() -> Source:
    return Source()


@pytest.fixture
def server(source: Source) -> Iterator[UiServer]:
    with UiServer(Watch(source)) as made:
        thread = threading.Thread(target=made.serve_forever, args=(0.02,))
        thread.start()
        yield made
        made.stop()
        thread.join()


class Answer:
    def __init__(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.status, self.headers, self.body = status, headers, body

    @property
    def json(self) -> Any:
        return msgspec.json.decode(self.body)


def ask(
    server: UiServer, method: str, target: str, body: bytes | None = None, /, **headers: str | None
) -> Answer:
    """As a browser does; a header of None is left out."""
    sent = {"Host": f"127.0.0.1:{server.port}", "Authorization": f"Bearer {server.token}"}
    if body is not None:
        sent["Content-Type"] = "application/json"
    for name, value in headers.items():
        sent.pop(name.replace("_", "-"), None)
        if value is not None:
            sent[name.replace("_", "-")] = value
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    try:
        connection.putrequest(method, target, skip_host=True, skip_accept_encoding=True)
        for name, value in sent.items():
            connection.putheader(name, value)
        if body is not None and "Content-Length" not in sent:
            connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body)
        answer = connection.getresponse()
        return Answer(answer.status, dict(answer.getheaders()), answer.read())
    finally:
        connection.close()


TRACE = b'{"source": "a", "target": "b"}'
API = (
    "/api/topology",
    "/api/counters",
    "/api/policy?pod=a/b",
    "/api/explain?source=a&destination=b",
    "/api/events",
)


@pytest.mark.parametrize("target", [*API, "/api/trace", "/api/none"])
@pytest.mark.parametrize(
    "told",
    [
        pytest.param(None, id="none"),
        pytest.param("Bearer", id="empty"),
        pytest.param("Bearer wrong", id="wrong"),
        pytest.param("Basic {token}", id="of another kind"),
        pytest.param("Bearer {token}x", id="longer"),
        pytest.param("Bearer {half}", id="half"),
        pytest.param("Bearer \xfc", id="no ASCII"),
    ],
)
def test_without_the_token_nothing_is_told_not_even_what_there_is(
    server: UiServer, target: str, told: str | None
) -> None:
    value = told and told.format(token=server.token, half=server.token[:20])
    for method in ("GET", "POST", "PUT"):
        answer = ask(server, method, target, b"{}" if method == "POST" else None, Authorization=value)
        assert answer.status == 401
        assert answer.headers["WWW-Authenticate"] == "Bearer"
        assert server.token.encode() not in answer.body


def test_the_token_in_the_url_is_not_taken(server: UiServer) -> None:
    assert ask(server, "GET", f"/api/counters?token={server.token}", Authorization=None).status == 401


def test_each_start_has_a_token_of_its_own() -> None:
    with UiServer(Watch(Source())) as one, UiServer(Watch(Source())) as other:
        assert len(one.token) >= 40
        assert one.token != other.token


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:{port}", 200),
        ("localhost:{port}", 200),
        ("LOCALHOST:{port}", 200),
        ("evil.example:{port}", 421),
        ("127.0.0.1", 421),
        ("127.0.0.1:1", 421),
        ("127.0.0.1.evil.example:{port}", 421),
        ("localhost.evil.example:{port}", 421),
        ("user@127.0.0.1:{port}", 421),
        ("127.0.0.2:{port}", 421),
        ("[::1]:{port}", 421),
        ("[::1", 421),
        ("127.0.0.1:{port}/x", 421),
        ("127.0.0.1:port", 421),
        ("", 421),
        (None, 421),
    ],
)
@pytest.mark.parametrize("target", ["/", "/api/counters"])
def test_only_its_own_names_reach_it(server: UiServer, target: str, host: str | None, status: int) -> None:
    value = None if host is None else host.format(port=server.port)
    assert ask(server, "GET", target, Host=value).status == status


def test_two_hosts_are_none(server: UiServer) -> None:
    with socket.create_connection(("127.0.0.1", server.port), 20) as sock:
        own = f"127.0.0.1:{server.port}"
        sock.sendall(f"GET / HTTP/1.1\r\nHost: {own}\r\nHost: evil\r\n\r\n".encode())
        assert sock.recv(100).startswith(b"HTTP/1.1 421 ")


@pytest.mark.parametrize(
    ("address", "host", "reached"),
    [
        ("::1", "[::1]:{port}", True),
        ("::1", "localhost:{port}", True),
        ("::1", "127.0.0.1:{port}", False),
        ("0.0.0.0", "192.0.2.7:{port}", True),
        ("0.0.0.0", "evil.example:{port}", False),
        ("0.0.0.0", "localhost:{port}", True),
    ],
)
def test_names_follow_the_address_it_listens_on(address: str, host: str, reached: bool) -> None:
    with UiServer(Watch(Source()), address) as server:
        assert server.reached_by(host.format(port=server.port)) is reached


@pytest.mark.parametrize(
    "target",
    [
        "/../server.py", "/..%2fserver.py", "/%2e%2e/server.py", "/static/../../../etc/passwd", "//etc/passwd", "/style.css/",
        "/style.css/../app.js", "/./app.js", "/app.js%00", "\\..\\server.py", "/index.html", "/static/app.js", "/server.py", "/.",
        "http://127.0.0.1/../server.py",
    ],
)  # fmt: skip
def test_there_are_no_paths_but_those_of_the_table(server: UiServer, target: str) -> None:
    answer = ask(server, "GET", target)
    assert answer.status == 404
    assert answer.json == {"error": "there is no such page"}


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT"])
def test_files_are_only_read(server: UiServer, method: str) -> None:
    answer = ask(server, method, "/", b"x" if method != "TRACE" else None)
    assert (answer.status, answer.headers["Allow"]) == (405, "GET, HEAD")


@pytest.mark.parametrize(
    ("target", "allowed"), [*((target, "GET") for target in API), ("/api/trace", "POST")]
)
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS"])
def test_questions_have_one_method(server: UiServer, target: str, allowed: str, method: str) -> None:
    if method == allowed:
        return
    answer = ask(server, method, target, TRACE if method in {"POST", "PUT"} else None)
    assert (answer.status, answer.headers["Allow"]) == (405, allowed)


def test_an_unknown_method_is_refused_with_the_same_headers(server: UiServer) -> None:
    answer = ask(server, "BREW", "/")
    assert answer.status == 501
    assert answer.headers["Content-Security-Policy"] == HEADERS["Content-Security-Policy"]


@pytest.mark.parametrize("target", ["/", "/app.js", "/style.css", "/none", "/api/counters", "/api/none"])
def test_every_answer_has_the_headers(server: UiServer, target: str) -> None:
    answer = ask(server, "GET", target)
    assert {name: answer.headers[name] for name in HEADERS} == HEADERS
    assert answer.headers["Server"] == "pycni"
    assert "Set-Cookie" not in answer.headers
    assert "Access-Control-Allow-Origin" not in answer.headers
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "http" not in policy


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "https://127.0.0.1:{port}"}, 403),
        ({"Origin": "http://127.0.0.1:1"}, 403),
        ({"Sec_Fetch_Site": "cross-site"}, 403),
        ({"Sec_Fetch_Site": "same-site"}, 403),
        ({"Content_Type": "text/plain"}, 415),
        ({"Content_Type": "application/x-www-form-urlencoded"}, 415),
        ({"Content_Length": "many"}, 411),
        ({"Content_Length": "-1"}, 411),
        ({"Content_Length": str(BODY_LIMIT + 1)}, 413),
    ],
)
def test_a_probe_is_sent_for_this_page_only(server: UiServer, headers: dict[str, str], status: int) -> None:
    told = {name: value.format(port=server.port) for name, value in headers.items()}
    assert ask(server, "POST", "/api/trace", TRACE, **told).status == status


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'{"source": 1, "target": "b"}',
        b'{"source": "a"}',
        b'{"source": "a", "target": "b", "x": 1}',
        b"\xff",
    ],
)
def test_a_body_that_is_no_question_is_refused(server: UiServer, body: bytes) -> None:
    answer = ask(server, "POST", "/api/trace", body)
    assert answer.status == 400
    assert answer.json["error"].startswith("the question cannot be read")


@pytest.mark.parametrize(
    "target",
    [
        "/api/policy",
        "/api/explain?source=a",
        "/api/topology?width=x",
        "/api/topology?width=nan",
        "/api/topology?height=1e9",
        "/api/topology?width=1",
    ],
)
def test_queries_that_make_no_sense_are_refused(server: UiServer, target: str) -> None:
    assert ask(server, "GET", target).status == 400


@pytest.mark.parametrize(
    ("trouble", "status", "words"),
    [
        (QuestionError("'a': no pod"), 400, "'a': no pod"),
        (LabError("no lab x"), 503, "no lab x"),
        (PermissionError(1, "not permitted"), 503, "[Errno 1] not permitted"),
        (KeyError("secret"), 500, "the server failed; its output tells more"),
    ],
    ids=["a wrong question", "the lab is gone", "the kernel says no", "a mistake of ours"],
)
def test_errors_are_one_line_of_json(
    server: UiServer,
    source: Source,
    trouble: Exception,
    status: int,
    words: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    source.trouble = trouble
    answer = ask(server, "POST", "/api/trace", TRACE)
    assert (answer.status, answer.json) == (status, {"error": words})
    assert bool(caplog.records) is (status == 500)


def test_the_graph_comes_with_places(server: UiServer) -> None:
    found = ask(server, "GET", "/api/topology?open=node1&width=900&height=600").json
    assert found["title"] == "lab <b>x</b>"
    assert found["places"]["open"] == ["node1"]
    assert found["places"]["boxes"]["pod:shop/web-1-1"]
    assert {item["kind"] for item in found["graph"]["items"]} >= {"node", "pod", "service", "tunnel"}


def test_counters_are_raw(server: UiServer) -> None:
    assert ask(server, "GET", "/api/counters").json["devices"] == {"node1/eth0": [1, 2, 3, 4, 5, 6]}


def test_without_agents_policies_come_from_the_objects_and_that_is_said(server: UiServer) -> None:
    found = ask(server, "GET", "/api/policy?pod=shop/web-1-1").json
    [ingress] = [side for side in found["rules"]["sides"] if side["direction"] == "ingress"]
    assert [policy["key"] for policy in ingress["policies"]] == ["shop/closed"]
    assert ingress["otherwise"] == "denied"
    assert "from the objects alone" in found["notes"][-1]
    assert ask(server, "GET", "/api/policy?pod=none/there").status == 404
    assert ask(server, "GET", "/api/explain?source=a&destination=b").status == 503


def test_events_come_until_the_server_ends(server: UiServer) -> None:
    with socket.create_connection(("127.0.0.1", server.port), 20) as sock:
        head = f"GET /api/events HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\nAuthorization: Bearer {server.token}\r\n\r\n"
        sock.sendall(head.encode())
        data = b""
        while b"event: topology" not in data or not data.endswith(b"\n\n"):
            data += sock.recv(65536)
        assert b"Content-Type: text/event-stream" in data
        assert json.loads(data.partition(b"event: counters\ndata: ")[2].split(b"\n")[0])["devices"]
        server.ended.set()
        while sock.recv(65536):
            pass


def test_a_mistake_of_ours_ends_the_stream_with_a_word(
    server: UiServer, source: Source, caplog: pytest.LogCaptureFixture
) -> None:
    source.trouble = KeyError("secret")
    answer = ask(server, "GET", "/api/events")
    assert answer.body.count(b"HTTP/1.1") == 0
    assert b'event: trouble\ndata: {"error":"the server failed' in answer.body
    assert b"secret" not in answer.body
    assert caplog.records


def test_trouble_is_an_event_and_the_stream_goes_on(server: UiServer, source: Source) -> None:
    source.trouble = LabError("no lab x")
    with socket.create_connection(("127.0.0.1", server.port), 20) as sock:
        head = f"GET /api/events HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\nAuthorization: Bearer {server.token}\r\n\r\n"
        sock.sendall(head.encode())
        data = b""
        while data.count(b'event: trouble\ndata: {"error":"no lab x"}') < 2:
            data += sock.recv(65536)


def test_more_connections_than_there_is_room_for_are_closed(server: UiServer) -> None:
    held = [socket.create_connection(("127.0.0.1", server.port), 20) for _ in range(CONNECTIONS)]
    try:
        with socket.create_connection(("127.0.0.1", server.port), 20) as one_more:
            assert one_more.recv(1) == b""
    finally:
        for sock in held:
            sock.close()


def test_a_request_that_is_none_is_answered(server: UiServer) -> None:
    with socket.create_connection(("127.0.0.1", server.port), 20) as sock:
        sock.sendall(b"nonsense\r\n\r\n")
        assert sock.recv(4096).startswith(b"HTTP/1.1 400 ")


def test_pages_have_no_script_or_style_of_their_own_and_ask_nobody_else() -> None:
    for path, file in static_files().items():
        text = file.body.decode()
        assert "https://" not in text, path
        assert "http://" not in text.replace("http://www.w3.org/2000/svg", ""), path
        if path.endswith(".js"):
            for word in (
                "innerHTML",
                "outerHTML",
                "insertAdjacentHTML",
                "document.write",
                "eval(",
                "new Function",
                "document.cookie",
            ):
                assert word not in text, f"{path}: {word}"
        if path == "/":
            assert "style=" not in text
            assert "<style" not in text
            assert " on" not in text.replace(" one", "").replace(" only", "").split("<body>")[0]
            assert '<script type="module" src="app.js"></script>' in text


def test_all_files_are_in_a_built_wheel(tmp_path: Path) -> None:
    names = {path.name for path in (ROOT / "pycni/ui/static").iterdir()}
    assert {"/" if name == "index.html" else f"/{name}" for name in names} == set(static_files())
    done = subprocess.run(
        [sys.executable, "-c", "import hatchling.build; hatchling.build.build_wheel(__import__('sys').argv[1])", str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    [wheel] = tmp_path.glob("*.whl")
    listed = subprocess.run(
        [sys.executable, "-m", "zipfile", "-l", str(wheel)], capture_output=True, text=True, check=True
    ).stdout
    for name in names:
        assert f"pycni/ui/static/{name}" in listed


@pytest.mark.parametrize("listen", ["example.org", "127.0.0.1:http", "127.0.0.1:70000", "", "127.0.0.1:0x50"])
def test_an_address_that_is_none_is_a_usage_error(listen: str, capsys: pytest.CaptureFixture[str]) -> None:
    args = parse(["ui", "--name", "none", "--listen", listen])
    with pytest.raises(SystemExit) as exit_:
        args.run(args)
    assert exit_.value.code == 2
    assert "--listen" in capsys.readouterr().err
