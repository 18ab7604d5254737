"""The listener for traces of other nodes under attack: whoever is not let in gets nothing done, and costs little."""

from __future__ import annotations

import logging
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest

from pycni.agent import trace_listen
from pycni.agent.trace_auth import CERT, TOKEN, Guard, Review
from pycni.agent.trace_listen import Contexts, Files, TraceListener
from pycni.agent.trace_watch import WATCHES, RefusedError
from pycni.errors import ConfigError
from pycni.kernel.capture import Frame
from pycni.tracing import speech
from pycni.tracing.ask import AskError, Door, Secure, context
from pycni.tracing.eyes import Order, Report
from pycni.tracing.remote import RemoteNode
from tests.unit.trace_fakes import (
    FLOW,
    Authority,
    FakeService,
    Pair,
    client_context,
    listening,
    until,
)

SECRET = "s3cr3t-t0ken"


class Pki(NamedTuple):
    ours: Authority
    theirs: Authority
    server: Pair
    node: Pair


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    folder = tmp_path_factory.mktemp("pki")
    ours, theirs = Authority(folder, "ours"), Authority(folder, "theirs")
    return Pki(ours, theirs, ours.pair("server", dns="pycni-trace"), ours.pair("node7", dns="node7.example"))


@pytest.fixture
def served(pki: Pki) -> Iterator[tuple[TraceListener, FakeService]]:
    with listening(pki.server, pki.ours.file) as found:
        yield found


def door(listener: TraceListener, made: ssl.SSLContext, token: str = "", name: str = "") -> Door:
    return Door("n1", Secure(made, listener.port, name).dial(["127.0.0.1"]), token)


def test_who_has_a_certificate_of_our_authority_is_answered(
    pki: Pki, served: tuple[TraceListener, FakeService]
) -> None:
    listener, service = served
    asked = door(listener, context(pki.ours.file, *pki.node))
    assert asked.get("/trace/state?end=a") == b'{"state":1}'
    assert asked.get("/trace/objects") == b"{}"
    assert asked.post("/trace/send", {"space": ""}) == b"{}"
    assert service.asked == [("state", "end=a"), ("objects", ""), ("send", b'{"space":""}')]
    assert listener.answers["200"] == 3


def no_certificate(pki: Pki) -> Pair | None:
    return None


def wrong_authority(pki: Pki) -> Pair:
    return pki.theirs.pair("node8")


def self_signed(pki: Pki) -> Pair:
    authority = Authority(Path(pki.theirs.file).parent, "self")
    return authority.pair("self-signed")


def expired(pki: Pki) -> Pair:
    return pki.ours.pair("late", days=-1)


def for_servers(pki: Pki) -> Pair:
    return pki.ours.pair("web", server=True)


STRANGERS = [no_certificate, wrong_authority, self_signed, expired, for_servers]


@pytest.mark.parametrize("stranger", STRANGERS, ids=lambda item: item.__name__)
def test_who_proves_nothing_gets_no_further_than_the_handshake(
    pki: Pki, served: tuple[TraceListener, FakeService], stranger, caplog: pytest.LogCaptureFixture
) -> None:
    listener, service = served
    pair = stranger(pki)
    made = context(pki.ours.file, *pair) if pair is not None else context(pki.ours.file)
    with caplog.at_level(logging.WARNING, "pycni.trace"):
        with pytest.raises(AskError) as caught:
            door(listener, made).get("/trace/state")
        until(lambda: bool(caplog.records), "the refusal is logged")
    assert caught.value.status == 0
    assert "TLS" in str(caught.value) or "reset" in str(caught.value).lower(), str(caught.value)
    assert listener.answers["tls"] == 1
    assert service.asked == []
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 1
    assert lines[0].startswith("trace refused to 127.0.0.1 (tls): ")


def test_a_name_that_is_not_allowed_is_403_and_said_once(pki: Pki, caplog: pytest.LogCaptureFixture) -> None:
    with listening(pki.server, pki.ours.file, Guard({CERT}, {"operator"})) as (listener, service):
        with caplog.at_level(logging.WARNING, "pycni.trace"):
            for _ in range(3):
                with pytest.raises(AskError, match="none of trace-allowed-names") as caught:
                    door(listener, context(pki.ours.file, *pki.node)).get("/trace/state")
                assert caught.value.status == 403
        assert service.asked == []
        assert door(listener, context(pki.ours.file, *pki.ours.pair("operator"))).get("/trace/state")
    assert len(caplog.records) == 1
    assert "node7" in caplog.text


def test_a_client_that_trusts_nobody_but_its_own_authority_does_not_talk_to_another(pki: Pki) -> None:
    stranger = pki.theirs.pair("fake-server")
    with listening(stranger, pki.ours.file) as (listener, service):
        with pytest.raises(AskError, match="its certificate is not accepted"):
            door(listener, context(pki.ours.file, *pki.node)).get("/trace/state")
        assert service.asked == []


@pytest.mark.parametrize(("name", "good"), [("", True), ("pycni-trace", True), ("other", False)])
def test_the_servers_name_is_checked(
    pki: Pki, served: tuple[TraceListener, FakeService], name: str, good: bool
) -> None:
    asked = door(served[0], context(pki.ours.file, *pki.node), name=name)
    if good:
        assert asked.get("/trace/state")
        return
    with pytest.raises(AskError, match="Hostname mismatch"):
        asked.get("/trace/state")


def review(token: str) -> Review:
    return {SECRET: Review("system:node", True), "known": Review("jane", False)}.get(token, Review(""))


TOKENS = {
    "good": (f"Bearer {SECRET}", 200),
    "good, lower case": (f"bearer {SECRET}", 200),
    "none": ("", 401),
    "nobody's": ("Bearer nonsense", 401),
    "may not": ("Bearer known", 403),
    "another scheme": ("Basic eDp5", 401),
    "empty": ("Bearer ", 401),
    "far too long": ("Bearer " + "x" * 5000, 401),
    "cut off": (f"Bearer {SECRET[:-1]}", 401),
}


@pytest.mark.parametrize(("field", "status"), TOKENS.values(), ids=TOKENS)
def test_tokens_are_what_the_cluster_says_of_them(
    pki: Pki, field: str, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    guard = Guard({TOKEN}, review=review)
    with listening(pki.server, pki.ours.file, guard) as (listener, service):
        with caplog.at_level(logging.DEBUG):
            head = f"GET /trace/state HTTP/1.1\r\n{f'Authorization: {field}{chr(13)}{chr(10)}' if field else ''}\r\n"
            answer = raw(listener, client_context(pki.ours.file), head.encode())
        assert answer.startswith(f"HTTP/1.1 {status} ".encode())
        assert (b"WWW-Authenticate: Bearer" in answer) is (status == 401)
        assert bool(service.asked) is (status == 200)
    assert SECRET[:-1] not in caplog.text


def test_with_tokens_a_certificate_is_no_way_in(pki: Pki) -> None:
    with listening(pki.server, pki.ours.file, Guard({TOKEN}, review=review)) as (listener, _):
        with pytest.raises(AskError) as caught:
            door(listener, context(pki.ours.file, *pki.node)).get("/trace/state")
        assert caught.value.status == 401


def test_with_both_ways_either_is_enough_and_a_bad_certificate_is_refused(pki: Pki) -> None:
    with listening(pki.server, pki.ours.file, Guard({CERT, TOKEN}, review=review)) as (listener, _):
        assert door(listener, context(pki.ours.file, *pki.node)).get("/trace/state")
        assert door(listener, context(pki.ours.file), SECRET).get("/trace/state")
        with pytest.raises(AskError):
            door(listener, context(pki.ours.file, *expired(pki)), SECRET).get("/trace/state")


def raw(listener: TraceListener, made: ssl.SSLContext, data: bytes) -> bytes:
    """What comes back for some bytes."""
    with (
        socket.create_connection(("127.0.0.1", listener.port), 10) as sock,
        made.wrap_socket(sock, server_hostname="127.0.0.1") as secure,
    ):
        secure.sendall(data)
        answer = b""
        try:
            while more := secure.recv(65536):
                answer += more
        except OSError:
            pass
        return answer


REQUESTS = {
    "not HTTP": (b"\x16\x03\x01 hello\r\n\r\n", 400),
    "another method": (b"DELETE /trace/state HTTP/1.1\r\n\r\n", 405),
    "a get where things are posted": (b"GET /trace/send HTTP/1.1\r\n\r\n", 405),
    "an unknown path": (b"GET /status HTTP/1.1\r\n\r\n", 404),
    "who the others are": (b"GET /trace/peers HTTP/1.1\r\n\r\n", 404),
    "a file": (b"GET /trace/../etc/passwd HTTP/1.1\r\n\r\n", 404),
    "a head without end": (b"GET /trace/state HTTP/1.1\r\n" + b"X: y\r\n" * 3000, 431),
    "a line without end": (b"GET /trace/" + b"x" * 20000, 431),
    "a field twice": (b"GET /trace/state HTTP/1.1\r\nA: 1\r\na: 2\r\n\r\n", 400),
    "no length": (b"POST /trace/send HTTP/1.1\r\n\r\n", 411),
    "too long": (b"POST /trace/send HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n", 413),
    "a negative length": (b"POST /trace/send HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 400),
    "chunks": (b"POST /trace/send HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    "two lengths": (b"POST /trace/send HTTP/1.1\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}", 400),
}


@pytest.mark.parametrize(("data", "status"), REQUESTS.values(), ids=REQUESTS)
def test_what_is_no_request_is_answered_by_its_status(
    pki: Pki, served: tuple[TraceListener, FakeService], data: bytes, status: int
) -> None:
    listener, service = served
    answer = raw(listener, client_context(pki.ours.file, pki.node), data)
    assert answer.startswith(f"HTTP/1.1 {status} ".encode()), answer[:80]
    assert service.asked == []


def test_plain_http_gets_no_answer(served: tuple[TraceListener, FakeService]) -> None:
    listener, service = served
    with socket.create_connection(("127.0.0.1", listener.port), 10) as sock:
        sock.sendall(b"GET /trace/state HTTP/1.1\r\nHost: x\r\n\r\n")
        try:
            answer = sock.recv(4096)
        except ConnectionResetError:
            answer = b""
    assert not answer.startswith(b"HTTP")
    until(lambda: listener.answers["tls"] == 1, "it is counted")
    assert service.asked == []


@pytest.mark.parametrize(
    "version", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1], ids=lambda item: item.name
)
@pytest.mark.filterwarnings("ignore:ssl.TLSVersion")
def test_old_versions_of_tls_are_not_spoken(
    pki: Pki, served: tuple[TraceListener, FakeService], version: ssl.TLSVersion
) -> None:
    made = client_context(pki.ours.file, pki.node)
    made.set_ciphers("ALL:@SECLEVEL=0")
    made.minimum_version = made.maximum_version = version
    with pytest.raises(OSError, match=r"(?i)alert|version|protocol|reset"):
        raw(served[0], made, b"GET /trace/state HTTP/1.1\r\n\r\n")


def test_a_slow_client_is_cut_and_others_are_served_meanwhile(
    pki: Pki, served: tuple[TraceListener, FakeService], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trace_listen, "REQUEST_S", 0.5)
    listener, service = served
    with (
        socket.create_connection(("127.0.0.1", listener.port), 10) as sock,
        client_context(pki.ours.file, pki.node).wrap_socket(sock, server_hostname="127.0.0.1") as slow,
    ):
        slow.sendall(b"GET /trace/state HT")
        assert door(listener, context(pki.ours.file, *pki.node)).get("/trace/state")
        began = time.monotonic()
        for _ in range(1000):  # a byte at a time does not make it more patient
            try:
                slow.sendall(b"x")
            except OSError:
                break
            time.sleep(0.02)
        assert time.monotonic() - began < 15
    assert service.asked == [("state", "")]


def test_who_never_shakes_hands_is_cut_and_a_crowd_from_one_place_is_not_heard(
    pki: Pki, served: tuple[TraceListener, FakeService], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trace_listen, "HANDSHAKE_S", 1.0)
    listener, _ = served
    silent = [
        socket.create_connection(("127.0.0.1", listener.port), 10) for _ in range(trace_listen.PER_PEER + 5)
    ]
    try:
        until(lambda: listener.answers["busy"] == 5, "those too many are turned away")
        for sock in silent:
            sock.settimeout(15)
            assert sock.recv(1) == b"", "all of them are cut"
    finally:
        for sock in silent:
            sock.close()
    asked = door(listener, context(pki.ours.file, *pki.node))
    until(lambda: _answers(asked), "there is room again")


def _answers(asked: Door) -> bool:
    try:
        return bool(asked.get("/trace/state"))
    except AskError:
        return False


def test_a_watch_is_ready_first_and_ends_with_its_client(
    pki: Pki, served: tuple[TraceListener, FakeService]
) -> None:
    listener, service = served
    node = RemoteNode("far", door(listener, context(pki.ours.file, *pki.node)), ("a", "b"))
    watching = node.watch(Order(token=7, flow=FLOW))
    assert msgspec.json.decode(service.asked[0][1], type=speech.Watch).ends == ("a", "b")
    assert not node.apart, "the same kernel's clock"
    frame = Frame("liar", "", "eth0", True, 5, b"data", True)
    service.node.watches[0].put(Report((frame,)))
    found: list[Frame] = []
    until(lambda: bool(found.extend(watching.drain().frames) or found), "the frame arrives")
    assert found == [frame._replace(node="far")], "whose it is, is not what is told"
    assert service.places.open == 1
    watching.close()
    until(lambda: service.places.open == 0, "its place is free")
    assert service.node.watches[0].closed


def test_there_are_few_watches_at_a_time(pki: Pki, served: tuple[TraceListener, FakeService]) -> None:
    listener, service = served
    node = RemoteNode("far", door(listener, context(pki.ours.file, *pki.node)))
    open_ones = [node.watch(Order(token=n, flow=FLOW)) for n in range(WATCHES)]
    try:
        with pytest.raises(AskError) as caught:
            node.watch(Order(token=99, flow=FLOW))
        assert caught.value.status == 429
    finally:
        for each in open_ones:
            each.close()
    until(lambda: service.places.open == 0, "all are free")
    node.watch(Order(token=1, flow=FLOW)).close()


def test_stopping_ends_watches(pki: Pki) -> None:
    with listening(pki.server, pki.ours.file) as (listener, service):
        watching = RemoteNode("far", door(listener, context(pki.ours.file, *pki.node))).watch(
            Order(token=1, flow=FLOW)
        )
    until(lambda: service.places.open == 0, "its place is free")
    with pytest.raises(AskError, match="does not answer any more"):
        until(lambda: bool(watching.drain().frames), "nothing comes")
    watching.close()


def test_a_refusal_of_the_kernel_arrives_as_such(pki: Pki, served: tuple[TraceListener, FakeService]) -> None:
    listener, service = served
    service.refuse = RefusedError(409, "Address already in use", 98)
    node = RemoteNode("far", door(listener, context(pki.ours.file, *pki.node)))
    with pytest.raises(OSError, match="Address already in use") as caught:
        node.send("", FLOW, 1)
    assert caught.value.errno == 98
    service.refuse = RefusedError(429, "more than 10 probes in a second")
    with pytest.raises(AskError, match="more than 10 probes"):
        node.send("", FLOW, 1)


def test_renewed_files_serve_the_next_connection_and_broken_ones_change_nothing(
    pki: Pki, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = pki.ours.pair("first"), pki.ours.pair("second")
    live = Pair(str(tmp_path / "tls.crt"), str(tmp_path / "tls.key"))

    def install(pair: Pair) -> None:
        for source, target in zip(pair, live, strict=True):
            Path(target).write_bytes(Path(source).read_bytes())

    def name(listener: TraceListener) -> str:
        made = client_context(pki.ours.file, pki.node)
        with (
            socket.create_connection(("127.0.0.1", listener.port), 10) as sock,
            made.wrap_socket(sock, server_hostname="127.0.0.1") as secure,
        ):
            found = secure.getpeercert() or {}
        return str(found["subject"][0][0][1])  # type: ignore[index]

    install(first)
    with listening(live, pki.ours.file) as (listener, _):
        assert name(listener) == "first"
        install(second)
        assert name(listener) == "second"
        Path(live.certificate).write_text("rubbish")
        with caplog.at_level(logging.WARNING, "pycni.trace"):
            assert name(listener) == "second"
        assert "going on with those read before" in caplog.text
        Path(live.certificate).unlink()
        assert name(listener) == "second"
        install(first)
        assert name(listener) == "first"


@pytest.mark.parametrize("missing", [0, 1, 2])
def test_files_that_are_not_there_at_the_start_are_a_wrong_setting(pki: Pki, missing: int) -> None:
    files = [*pki.server, pki.ours.file]
    files[missing] = "/no/such/file"
    with pytest.raises(ConfigError, match="trace-tls-cert"):
        Contexts(Files(*files), required=True)
