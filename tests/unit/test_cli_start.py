"""What a command costs before it does anything: what it imports. And what is said without argparse is all there is."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pycni import cli
from pycni.lab import glance, state

ROOT = Path(__file__).parents[2]


def imported(*words: str) -> set[str]:
    """Modules a command has imported when it ends."""
    program = (
        "import sys\nfrom pycni import cli\n"
        f"try:\n    cli.main({list(words)!r})\nexcept SystemExit:\n    pass\n"
        "print('\\n'.join(f'IMPORTED {name}' for name in sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", f"import sys\nsys.path[:0] = {sys.path!r}\n{program}"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return {
        line.removeprefix("IMPORTED ") for line in done.stdout.splitlines() if line.startswith("IMPORTED ")
    }


def test_help_names_every_command_and_imports_none_of_them() -> None:
    text = cli.help_text()
    for name, (_, summary) in cli.COMMANDS.items():
        assert f"\n  {name:<11} {summary.split(' ')[0]}" in text
    words = " ".join(text.split())
    assert all(summary in words for _, summary in cli.COMMANDS.values())
    assert max(map(len, text.splitlines())) <= cli.HELP_WIDTH
    modules = imported("--help")
    assert {name for name in modules if name.startswith("pycni")} == {"pycni", "pycni.cli"}
    assert not {"argparse", "typing", "re", "importlib.util"} & modules


@pytest.mark.parametrize("words", [["-h"], ["--help"], ["--help", "status"]], ids=" ".join)
def test_help_is_printed_and_no_error(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(words) == 0
    assert capsys.readouterr().out == cli.help_text()


def test_a_command_there_is_not_is_answered_by_those_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["sing"])
    assert ended.value.code == 2
    text = capsys.readouterr().err
    assert all(f"'{name}'" in text for name in cli.COMMANDS)


def test_status_imports_neither_http_client_nor_what_makes_labs(tmp_path: Path) -> None:
    modules = imported("status", "--socket", str(tmp_path / "none"))
    assert "pycni.cli_status" in modules
    assert not {"http.client", "ssl", "email", "pycni.lab.run", "pycni.agent.settings", "asyncio"} & modules


RECORD = {"version": 1, "spec": {"driver": "netns"}, "nodes": ["node1", "node2"]}


@pytest.mark.parametrize(
    ("record", "found"),
    [
        (RECORD, ["node1", "node2"]),
        ({**RECORD, "spec": {}}, ["node1", "node2"]),
        ({**RECORD, "spec": {"driver": "uml"}}, None),
        ({**RECORD, "version": 2}, None),
        ({**RECORD, "nodes": []}, None),
        ({"version": 1}, None),
        ([], None),
        (None, None),
    ],
    ids=["namespaces", "the usual", "guests", "another version", "no nodes", "half", "a list", "no lab"],
)
def test_a_labs_sockets_are_known_or_it_is_opened_properly(
    record: object, found: list[str] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(glance, "RUN", str(tmp_path))
    if record is not None:
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "lab.json").write_text(json.dumps(record))
    wanted = {node: f"{tmp_path}/mine/nodes/{node}/agent.sock" for node in found} if found else None
    assert glance.sockets("mine", "agent.sock") == wanted


def test_only_names_of_labs_become_paths() -> None:
    assert glance.sockets("../etc", "agent.sock") is None
    assert str(state.RUN) == glance.RUN
