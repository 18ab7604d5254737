"""The command line of pycnictl: what is understood, what is refused and with which exit code."""

from __future__ import annotations

import subprocess
import sys

import pytest

from pycni import cli
from pycni.backends import table
from pycni.lab import attachments, backends
from pycni.lab.commands import spec_of
from pycni.lab.topology import LabError
from pycni.model.attachment import AttachmentKind


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        pytest.param(
            "lab up", {"name": "default", "nodes": 3, "backend": "vxlan", "family": "ipv4"}, id="defaults"
        ),
        pytest.param(
            "lab up --name x --nodes 5 --backend host-gw --family dual --pods 1 --json",
            {"name": "x", "nodes": 5, "backend": "host-gw", "family": "dual", "pods": 1, "json": True},
            id="all",
        ),
        pytest.param(
            "lab pod add --node node2 web --name x", {"node": "node2", "pod": "web", "name": "x"}, id="pod"
        ),
        pytest.param("lab pod add", {"node": None, "pod": None, "capabilities": None}, id="any pod"),
        pytest.param(
            'lab pod add --capabilities {"mac":"x"}',
            {"capabilities": {"mac": "x"}},
            id="capability arguments",
        ),
        pytest.param("lab up --proxy ipvs --driver uml", {"proxy": "ipvs", "driver": "uml"}, id="data plane"),
        pytest.param("lab apply -f a.yaml -f -", {"files": ["a.yaml", "-"]}, id="apply"),
        pytest.param(
            "lab delete pod a b -n shop --grace 0",
            {"kind": "pod", "names": ["a", "b"], "namespace": "shop", "grace": 0.0, "files": []},
            id="delete by name",
        ),
        pytest.param("lab delete -f a.yaml", {"kind": None, "names": [], "grace": None}, id="delete by file"),
        pytest.param("lab get svc -n shop", {"kind": "svc", "namespace": "shop"}, id="get"),
        pytest.param("lab get", {"kind": "", "namespace": ""}, id="get all"),
        pytest.param(
            "lab pod ready web-1 false --listen off",
            {"pod": "web-1", "ready": "false", "listen": "off"},
            id="ready",
        ),
        pytest.param(
            "lab ask pod1 web:80 --protocol udp --count 9",
            {"source": "pod1", "target": "web:80", "protocol": "udp", "count": 9},
            id="ask",
        ),
        pytest.param(
            "lab exec --name x pod1 -- ls -la", {"rest": ["ls", "-la"], "target": "pod1"}, id="exec"
        ),
    ],
)
def test_command_lines_are_understood(words: str, expected: dict[str, object]) -> None:
    args = vars(cli.parse(words.split()))
    assert {key: args[key] for key in expected} == expected


@pytest.mark.parametrize(
    ("words", "said"),
    [
        pytest.param("", "COMMAND", id="nothing"),
        pytest.param("lab", "COMMAND", id="no lab command"),
        pytest.param("lab fly", "invalid choice", id="unknown command"),
        pytest.param("lab up --backend pigeon", "invalid choice: 'pigeon'", id="backend"),
        pytest.param("lab up --nodes many", "invalid int", id="no number"),
        pytest.param("lab pod add --capabilities []", "is not a JSON object", id="capabilities"),
        pytest.param("lab pod rm", "required: pod", id="missing pod"),
        pytest.param("lab apply", "required: -f/--file", id="nothing to apply"),
        pytest.param("lab up --proxy iptables", "invalid choice: 'iptables'", id="proxy"),
        pytest.param("lab pod ready web-1 maybe", "invalid choice: 'maybe'", id="readiness"),
        pytest.param("lab status -- ls", "unrecognized arguments: -- ls", id="a program where none is run"),
    ],
)
def test_wrong_command_lines_exit_with_2(words: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.parse(words.split())
    assert caught.value.code == 2
    assert said in capsys.readouterr().err


def test_options_of_exec_may_follow_the_target(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, object] = {}
    monkeypatch.setattr("pycni.lab.commands.execute", lambda args: seen.update(vars(args)) or 0)
    assert cli.main(["lab", "exec", "node1", "--name", "x", "--", "ip", "--json", "a"]) == 0
    assert (seen["name"], seen["json"], seen["argv"]) == ("x", False, ["ip", "--json", "a"])
    assert cli.main(["lab", "exec", "node1", "--", "nsenter", "-n", "--", "ls"]) == 0
    assert seen["argv"] == ["nsenter", "-n", "--", "ls"]
    assert cli.main(["lab", "exec", "node1", "ip", "--json", "a"]) == 0
    assert (seen["name"], seen["json"], seen["argv"]) == ("default", False, ["ip", "--json", "a"])


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        pytest.param(LabError("no such thing"), 1, "pycnictl: no such thing\n", id="failed"),
        pytest.param(LabError("wrong", usage=True), 2, "pycnictl: wrong\n", id="usage"),
        pytest.param(KeyboardInterrupt(), 130, "pycnictl: interrupted\n", id="interrupted"),
        pytest.param(FileNotFoundError(2, "No such file", "nsenter"), 1, "nsenter", id="system"),
    ],
)
def test_errors_are_one_line_and_an_exit_code(
    error: BaseException,
    code: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(_args: object) -> int:
        raise error

    monkeypatch.setattr("pycni.lab.commands.status", fail)
    assert cli.main(["lab", "status"]) == code
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    "words",
    [
        *("up", "down", "status", "matrix", "pod add", "pod rm x", "exec x -- ls", "demo"),
        *("get", "delete pod x", "pod ready x true", "ask x y:1"),
    ],
)
def test_without_root_every_lab_command_says_so(
    words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert cli.main(["lab", *words.split()]) == 2
    assert capsys.readouterr().err == (
        "pycnictl: lab commands make network namespaces and need root: run them with sudo\n"
    )


def test_a_bug_is_not_hidden_as_an_error_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_args: object) -> int:
        raise ZeroDivisionError

    monkeypatch.setattr("pycni.lab.commands.status", fail)
    with pytest.raises(ZeroDivisionError):
        cli.main(["lab", "status"])


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from pycni import cli\n"
        "try: cli.main(['lab', '--help'])\n"
        "except SystemExit: pass\n"
        "print([m for m in ('msgspec', 'pyroute2', 'rich', 'grpc', 'asyncio') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.splitlines()[-1] == "[]"


def test_lab_commands_do_not_import_what_only_the_agent_needs() -> None:
    code = "import sys, pycni.lab.commands; print([m for m in ('pyroute2', 'rich', 'grpc', 'asyncio', 'nftables') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out == "[]\n"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        pytest.param(
            "", {"backend": "vxlan", "bgp": "none", "attach": "bridge", "backend_conf": {}}, id="defaults"
        ),
        pytest.param("--backend bgp", {"bgp": "exabgp"}, id="backend bgp has an engine"),
        pytest.param("--backend bgp --bgp bird", {"bgp": "bird"}, id="another engine"),
        pytest.param(
            '--backend wireguard --backend-conf {"ListenPort":4500} --attach ptp',
            {"backend": "wireguard", "backend_conf": {"ListenPort": 4500}, "attach": "ptp"},
            id="keys of the backend",
        ),
    ],
)
def test_flags_of_up_become_a_specification(words: str, expected: dict[str, object]) -> None:
    spec = spec_of(cli.parse(["lab", "up", *words.split()]))
    assert {name: getattr(spec, name) for name in expected} == expected


def test_every_backend_of_the_agent_can_be_chosen_for_a_lab() -> None:
    for name in table.BACKENDS:
        assert spec_of(cli.parse(["lab", "up", "--backend", name])).backend == name
    assert set(backends.BACKENDS) == set(table.BACKENDS)
    for kind in AttachmentKind:
        assert spec_of(cli.parse(["lab", "up", "--attach", kind])).attach == kind
    assert set(attachments.ATTACHMENTS) == set(AttachmentKind)
