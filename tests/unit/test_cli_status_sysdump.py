"""pycnictl sysdump: no secret leaves the node, whatever file it stands in; what cannot be had is said."""

from __future__ import annotations

import base64
import io
import json
import os
import socket
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from pycni import cli, cli_sysdump_collect
from pycni.cli_sysdump_secrets import REMOVED, Secrets

KEY = base64.b64encode(bytes(range(32))).decode()
OTHER_KEY = base64.b64encode(bytes(range(100, 132))).decode()

ANNOUNCED = {
    "json": ('{"PSK":"%s","Port":8285}', "Tr0ub4dor/3"),
    "json in json": ('{"conf":"{\\"PSK\\": \\"%s\\"}"}', "Tr0ub4dor/3"),
    "toml": ('etcd-password = "%s"', "a pass phrase"),
    "flag": ("pycnid run --etcd-password=%s --ip-masq", "hunter22"),
    "flag and word": ("pycnid run --etcd-password %s --ip-masq", "hunter22"),
    "variable": ("PYCNID_ETCD_PASSWORD=%s", "hunter22"),
    "bird": ('  password "%s";', "bgp secret"),
    "exabgp": ("  md5-password '%s';", "bgp secret"),
    "wg show": ("  private key: %s", KEY),
    "wg conf": ("PrivateKey = %s", KEY),
    "yaml": ("    token: %s", "eyJhbGciOi.J9"),
    "header": ("Authorization: Bearer %s", "eyJhbGciOi.J9"),
    "url": ("http://user:%s@192.0.2.1:2379", "hunter22"),
    "kubeconfig": ("    client-key-data: %s", KEY),
    "pem": ("-----BEGIN EC PRIVATE KEY-----\n%s\n-----END EC PRIVATE KEY-----", KEY),
    "short": ("password: %s", "abc"),
}


@pytest.mark.parametrize(("text", "secret"), ANNOUNCED.values(), ids=ANNOUNCED)
def test_what_is_called_a_secret_is_removed_where_it_stands(text: str, secret: str) -> None:
    cleaned = Secrets().clean(text % secret)
    assert secret not in cleaned
    assert REMOVED in cleaned


# A PEM's body is no value by itself, and a short word may be any word.
LEARNT = {name: found for name, found in ANNOUNCED.items() if name not in {"pem", "short"}}


@pytest.mark.parametrize(("text", "secret"), LEARNT.values(), ids=LEARNT)
def test_and_then_everywhere_else_however_it_is_written(text: str, secret: str) -> None:
    known = Secrets()
    known.learn(text % secret)
    raw = secret.encode()
    for form in (secret, base64.b64encode(raw).decode(), raw.hex(), json.dumps(secret)[1:-1]):
        assert form not in known.clean(f"log: peer said {form}, again {form}")


def test_a_binary_key_is_found_in_base64_and_hex() -> None:
    known = Secrets()
    known.add(KEY)
    assert known.clean(f"{KEY} {bytes(range(32)).hex()} {OTHER_KEY}") == f"{REMOVED} {REMOVED} {OTHER_KEY}"


@pytest.mark.parametrize(
    "text",
    [
        '"etcd-password-file": "/etc/pycni/password"',
        '"etcd-password": "(hidden)"',
        "link flannel0 psk-fingerprint 1f0c",
        "peer-router-passwords-file is not readable",
        "  public key: " + OTHER_KEY,
        "10.244.1.0/24 via 10.244.1.0 dev flannel.1 onlink",
        "net.ipv4.tcp_fastopen_key is off",
        '{"Authorization": "no"}',
        "http://192.0.2.1:2379/v3/kv",
    ],
)
def test_what_is_none_stays(text: str) -> None:
    known = Secrets()
    known.learn(text)
    assert known.clean(text) == text


# --- a whole bundle --------------------------------------------------------------------------------------------------

ETCD, BGP, OSPF, PSK, PRIVATE = "3tcd-hunter2", "bgp hunter3", "0spf-hunter4", OTHER_KEY, KEY
ALL = (ETCD, BGP, OSPF, PSK, PRIVATE)


class FakeAgent:
    """Answers on a control socket."""

    def __init__(self, path: Path, answers: Mapping[str, str]) -> None:
        self.path = str(path)
        self._answers = answers
        self._sock = socket.socket(socket.AF_UNIX)
        self._sock.bind(self.path)
        self._sock.listen(8)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while True:
            connection, _ = self._sock.accept()
            with connection:
                target = connection.recv(4096).split(b" ")[1].decode()
                if target == "/stop":
                    return
                body = self._answers.get(target)
                head = "404 Not Found" if body is None else "200 OK"
                connection.sendall(
                    f"HTTP/1.1 {head}\r\nConnection: close\r\n\r\n{body or 'there are others'}".encode()
                )

    def close(self) -> None:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(self.path)
            sock.sendall(b"GET /stop HTTP/1.1\r\n\r\n")
        self._thread.join()
        self._sock.close()


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeAgent]:
    """A node that has every secret in its files, and most of them in its log and its agent's answers too."""
    monkeypatch.setattr(cli_sysdump_collect, "NODE", {"echo.txt": f"echo {PSK} {PRIVATE}"})
    monkeypatch.setattr(cli_sysdump_collect, "SYSCTLS", ())
    monkeypatch.setattr(cli_sysdump_collect, "CNI_CONFS", str(tmp_path / "net.d"))
    state = tmp_path / "state"
    (state / "bgp").mkdir(parents=True)
    (state / "endpoints").mkdir()
    (state / "wireguard.key").write_text(f"{PRIVATE}\n")
    (state / "lease.json").write_text(json.dumps({"NetConf": {"Backend": {"Type": "udp", "PSK": PSK}}}))
    (state / "bgp" / "bird.conf").write_text(f'protocol bgp {{ password "{BGP}"; }}')
    (state / "endpoints" / "a.json").write_text(json.dumps({"netns": "/nowhere", "conf": ETCD}))
    passwords = tmp_path / "passwords"
    passwords.write_text(base64.b64encode(BGP.encode()).decode() + ",")
    ospf = tmp_path / "ospf"
    ospf.write_text(base64.b64encode(OSPF.encode()).decode())
    log = tmp_path / "agent.log"
    with log.open("w") as stream:
        stream.write("".join(f"said {text} and {base64.b64encode(text.encode()).decode()}\n" for text in ALL))
        stream.write(f"wireguard: set private_key={bytes(range(32)).hex()}\n")
        stream.flush()
        process = subprocess.Popen(
            [sys.executable, "-c", "input()"],
            stdin=subprocess.PIPE,
            stderr=stream,
            env={**os.environ, "PYCNID_ETCD_PASSWORD": ETCD},
        )
    settings = {
        "state-dir": str(state),
        "etcd-password": "(hidden)",
        "peer-router-passwords-file": str(passwords),
        "ospf-password-file": str(ospf),
    }
    answers = {
        "/status": json.dumps({"pid": process.pid, "errors": [f"refused {ETCD}"]}),
        "/settings": json.dumps(settings),
        "/metrics": f'x{{key="{PRIVATE}"}} 1',
        "/dump": json.dumps({"sections": [{"desired": [f"psk {PSK}", OSPF]}]}),
    }
    agent = FakeAgent(tmp_path / "agent.sock", answers)
    yield agent
    agent.close()
    process.communicate(b"\n")


def test_no_secret_of_a_node_is_in_its_bundle(
    node: FakeAgent, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "out.tar.gz"
    assert cli.main(["sysdump", "--socket", node.path, "-o", str(path)]) == 0
    assert str(path) in capsys.readouterr().out
    assert path.stat().st_mode & 0o777 == 0o600
    with tarfile.open(path) as archive:
        found = {
            entry.name.split("/", 2)[2]: file.read().decode()
            for entry in archive
            if (file := archive.extractfile(entry)) is not None
        }
    everything = "\n".join([*found, *found.values()])
    for secret in ALL:
        raw = secret.encode()
        for form in (secret, base64.b64encode(raw).decode(), raw.hex(), raw.hex().upper()):
            assert form not in everything, form
    assert bytes(range(32)).hex() not in everything
    # And it is not empty because of that.
    assert found["agent/log.txt"].count("said") == len(ALL)
    assert "wireguard.key" in found["state/listing.txt"]
    assert "protocol bgp" in found["bgp/bird.conf"]
    assert json.loads(found["state/lease.json"])["NetConf"]["Backend"] == {"Type": "udp", "PSK": REMOVED}
    assert "/services" in found["not-collected.txt"]
    assert "/nowhere is gone" in found["not-collected.txt"]


def test_a_dead_agent_leaves_what_the_node_itself_tells(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(cli_sysdump_collect, "NODE", {"a.txt": "echo here", "b.txt": "pycni-no-such-command"})
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "lease.json").write_text("{}")
    found = cli_sysdump_collect.collect(str(tmp_path / "agent.sock"))
    assert found["node/a.txt"] == "$ echo here\nhere\n"
    assert found["state/lease.json"] == "{}"
    assert "pycni-no-such-command: no such command here" in found["not-collected.txt"]
    assert "no agent answers at" in found["not-collected.txt"]


def test_long_texts_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli_sysdump_collect, "LIMIT", 10)
    bundle = cli_sysdump_collect.Bundle()
    bundle.add("first", "0123456789abc")
    bundle.add("last", "0123456789abc", last=True)
    assert bundle.texts["first"].startswith("0123456789\n(cut")
    assert bundle.texts["last"].endswith("3456789abc")


def test_an_archive_keeps_names_and_texts() -> None:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w|") as archive:
        cli_sysdump_collect.write(archive, {"a/b.txt": "\N{SNOWMAN}"}, "n1")
    stream.seek(0)
    with tarfile.open(fileobj=stream) as archive:
        file = archive.extractfile("n1/a/b.txt")
        assert file is not None
        assert file.read().decode() == "\N{SNOWMAN}"
