"""pycnictl completion: real shells offer what the parsers know, at every place of a command line."""

import argparse
import json
import subprocess
from pathlib import Path

import pytest

from pycni import cli, cli_completion
from pycni.cli_completion import SCRIPTS, Place, places, whole_parser

SHELLS = tuple(SCRIPTS)


@pytest.fixture(scope="module")
def known() -> list[Place]:
    return places(whole_parser())


@pytest.fixture(scope="module")
def scripts(known: list[Place], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("completion")
    made = {}
    for shell, make in SCRIPTS.items():
        made[shell] = folder / shell
        made[shell].write_text(make(known))
    return made


def bash_words(line: list[str]) -> str:
    words = " ".join(f"'{word}'" for word in line)
    return f'COMP_WORDS=({words}); COMP_CWORD={len(line) - 1}; _pycnictl; echo "${{COMPREPLY[*]}}"\n'


def zsh_words(line: list[str]) -> str:
    words = " ".join(f"'{word}'" for word in line)
    return f"words=({words}); CURRENT={len(line)}; found=(); _pycnictl; print -r -- $found\n"


ZSH = """
compdef() { : }
_default() { : }
compadd() { [[ $1 = -- ]] && shift; found+=("$@") }
_describe() { found+=(${${(P)@[-1]}%%:*}) }
"""


def offered(shell: str, script: Path, lines: list[list[str]]) -> list[set[str]]:
    """What a shell offers for the last word of each line."""
    if shell == "bash":
        text = f"source {script}\n" + "".join(map(bash_words, lines))
    elif shell == "zsh":
        text = f"{ZSH}\nsource {script}\n" + "".join(map(zsh_words, lines))
    else:
        text = f"source {script}\n" + "".join(
            f"printf '%s ' '' (complete -C '{' '.join(line)}' | cut -f1); echo\n" for line in lines
        )
    options = {"bash": ["--norc", "--noprofile"], "zsh": ["-f"], "fish": ["--no-config"]}[shell]
    done = subprocess.run(
        [shell, *options, "-c", text],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={"PATH": "/usr/bin:/bin", "HOME": str(script.parent), "TERM": "dumb"},
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr, done.stderr
    found = [line.split() for line in done.stdout.splitlines()]
    # zsh itself drops what does not begin as the word does.
    return [
        {word for word in words if word.startswith(line[-1])}
        for words, line in zip(found, lines, strict=True)
    ]


@pytest.mark.parametrize("shell", SHELLS)
def test_every_subcommand_is_offered_at_its_place(
    shell: str, known: list[Place], scripts: dict[str, Path]
) -> None:
    some = [place for place in known if place.nested]
    assert {place.path for place in some} >= {"pycnictl", "pycnictl/lab", "pycnictl/lab/pod", "pycnictl/ipam"}
    found = offered(shell, scripts[shell], [[*place.path.split("/"), ""] for place in some])
    for place, words in zip(some, found, strict=True):
        assert words >= {name for name, _ in place.commands}, place.path
        assert not {word for word in words if not word.startswith("-")} - {name for name, _ in place.commands}


@pytest.mark.parametrize("shell", SHELLS)
def test_every_option_is_offered_at_its_place(
    shell: str, known: list[Place], scripts: dict[str, Path]
) -> None:
    found = offered(shell, scripts[shell], [[*place.path.split("/"), "--"] for place in known])
    for place, words in zip(known, found, strict=True):
        assert words == {
            flag for option in place.options for flag in option.flags if flag.startswith("--")
        }, place.path


@pytest.mark.parametrize("shell", SHELLS)
def test_values_that_are_known_are_offered(shell: str, known: list[Place], scripts: dict[str, Path]) -> None:
    some = [
        ([*place.path.split("/"), option.flags[-1], ""], set(option.choices))
        for place in known
        for option in place.options
        if option.takes and option.choices
    ]
    assert (["pycnictl", "dump", "--part", ""], {"fabric", "pods", "services", "policies", "bgp"}) in some
    found = offered(shell, scripts[shell], [line for line, _ in some])
    assert dict(zip([str(line) for line, _ in some], found, strict=True)) == {
        str(line): choices for line, choices in some
    }


@pytest.mark.parametrize("shell", SHELLS)
def test_words_of_a_command_run_in_a_lab_are_left_alone(shell: str, scripts: dict[str, Path]) -> None:
    (found,) = offered(shell, scripts[shell], [["pycnictl", "lab", "exec", "node1", "--", "--"]])
    assert "--json" not in found


def test_help_texts_cannot_leave_their_quotation_marks(tmp_path: Path) -> None:
    parser = argparse.ArgumentParser(prog="pycnictl")
    parser.add_argument("--it's", help="a 'quoted' $(touch x) `touch x` \\ help", choices=["a", "b"])
    parser.add_subparsers().add_parser("sub", help="a 'quoted' $(touch y) `touch y` \\ help")
    some = places(parser)
    for shell, make in SCRIPTS.items():
        script = tmp_path / shell
        script.write_text(make(some))
        done = subprocess.run(
            [shell, "-c", f"{ZSH if shell == 'zsh' else ''}\nsource {script}"],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            timeout=30,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, ""), shell
    assert sorted(item.name for item in tmp_path.iterdir()) == sorted(SHELLS)


def test_components_that_are_not_installed_are_left_out(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(
        cli,
        "COMMANDS",
        {"status": ("pycni.cli_status", "how it is"), "other": ("pycni_other.cli", "not here")},
    )
    names = [name for name, _ in places(whole_parser())[0].commands]
    assert names == ["status"]
    monkeypatch.setattr(cli, "COMMANDS", {"broken": ("pycni.cli_no_such", "a mistake of ours")})
    with pytest.raises(ModuleNotFoundError, match="cli_no_such"):
        whole_parser()


def test_the_command_prints_the_script(capsys: pytest.CaptureFixture[str], known: list[Place]) -> None:
    assert cli.main(["completion", "fish"]) == 0
    assert capsys.readouterr().out == cli_completion.fish(known)
    assert json.dumps([name for name, _ in known[0].commands]).count("sysdump") == 1
