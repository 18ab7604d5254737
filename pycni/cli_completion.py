"""``pycnictl completion bash|zsh|fish``: a script that completes commands, options and their values, for ``source``.

Made from the parsers of all commands, so it knows what they know; names of labs are looked up when they are asked for.

    source <(pycnictl completion bash)                                    # also: /etc/bash_completion.d/pycnictl
    pycnictl completion zsh > "${fpath[1]}/_pycnictl"
    pycnictl completion fish > ~/.config/fish/completions/pycnictl.fish
"""

from __future__ import annotations

import argparse
import importlib
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

PROGRAM = "pycnictl"
LABS = "/run/pycni-lab"
"""A folder per lab."""


class Option(NamedTuple):
    """A flag in all its spellings."""

    flags: tuple[str, ...]
    help: str
    takes: bool
    """Whether a value follows."""
    choices: tuple[str, ...]
    """What the value may be; (): anything."""

    @property
    def lab(self) -> bool:
        """Whether the value is the name of a lab."""
        return self.takes and "--name" in self.flags


class Place(NamedTuple):
    """Where a command line can be: the words so far, and what may follow."""

    path: str
    """``pycnictl/lab/up``."""
    commands: tuple[tuple[str, str], ...]
    """Names of subcommands, or of what the first argument may be, with a word about them."""
    options: tuple[Option, ...]
    nested: bool
    """Whether ``commands`` are subcommands, with places of their own."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("shell", choices=tuple(SCRIPTS))
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the script."""
    sys.stdout.write(SCRIPTS[args.shell](places(whole_parser())))
    return 0


def whole_parser() -> argparse.ArgumentParser:
    """A parser with the arguments of every command; those of components that are not installed are left out."""
    from pycni.cli import COMMANDS  # noqa: PLC0415 - cli imports commands, not the other way round

    parser = argparse.ArgumentParser(prog=PROGRAM)
    parser.add_argument("--version", action="store_true", help="print the version")
    commands = parser.add_subparsers()
    for name, (module, summary) in COMMANDS.items():
        try:
            command = importlib.import_module(module)
        except ModuleNotFoundError as exc:
            if exc.name == module.partition(".")[0]:
                continue
            raise
        command.configure(commands.add_parser(name, help=summary))
    return parser


def places(parser: argparse.ArgumentParser, path: str = PROGRAM) -> list[Place]:
    """The place of a parser, and those of its subcommands."""
    commands: list[tuple[str, str]] = []
    options: list[Option] = []
    below: list[Place] = []
    nested = False
    for action in parser._actions:  # noqa: SLF001 - argparse tells it nowhere else
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001
            nested = True
            helps = {item.dest: item.help or "" for item in action._choices_actions}  # noqa: SLF001
            for name, inner in action.choices.items():
                commands.append((name, helps.get(name, "")))
                below += places(inner, f"{path}/{name}")
        elif action.option_strings:
            if action.help is not argparse.SUPPRESS:
                options.append(
                    Option(
                        tuple(action.option_strings),
                        _help(action),
                        action.nargs != 0,
                        _choices(action.choices),
                    )
                )
        elif not nested:
            commands += [(choice, "") for choice in _choices(action.choices)]
    return [Place(path, tuple(commands), tuple(options), nested), *below]


def _choices(choices: Iterable[object] | None) -> tuple[str, ...]:
    return tuple(str(item) for item in choices or () if item != "")


def _help(action: argparse.Action) -> str:
    return " ".join((action.help or "").replace("%%", "%").split())


def _paths(some: Sequence[Place]) -> str:
    return " | ".join(item.path for item in some[1:])


def _values(some: Sequence[Place]) -> Iterator[tuple[str, Option]]:
    """Each place and flag after which a value comes."""
    for place in some:
        for option in place.options:
            if option.takes:
                yield from ((f"{place.path} {flag}", option) for flag in option.flags)


# --- bash ------------------------------------------------------------------------------------------------------------


def bash(some: Sequence[Place]) -> str:
    """For bash; without the bash-completion package."""
    lines = [
        "_pycnictl() {",
        '    local cur="${COMP_WORDS[COMP_CWORD]}" where=pycnictl word words= index',
        "    COMPREPLY=()",
        "    for ((index = 1; index < COMP_CWORD; index++)); do",
        '        word="${COMP_WORDS[index]}"',
        '        [ "$word" = -- ] && return',
        '        case "$where/$word" in',
        f'        {_paths(some)}) where="$where/$word" ;;',
        "        esac",
        "    done",
        '    case "$where ${COMP_WORDS[COMP_CWORD-1]}" in',
    ]
    for what, option in _values(some):
        if option.lab:
            lines.append(f'    {shlex.quote(what)}) words="$(ls {LABS} 2>/dev/null)" ;;')
        elif option.choices:
            lines.append(f"    {shlex.quote(what)}) words={shlex.quote(' '.join(option.choices))} ;;")
        else:
            lines.append(f"    {shlex.quote(what)}) return ;;")
    lines += ["    esac", '    [ -n "$words" ] || case "$where" in']
    for place in some:
        known = [
            *(name for name, _ in place.commands),
            *(flag for item in place.options for flag in item.flags),
        ]
        lines.append(f"    {place.path}) words={shlex.quote(' '.join(known))} ;;")
    lines += [
        "    esac",
        '    mapfile -t COMPREPLY < <(compgen -W "$words" -- "$cur")',
        "}",
        f"complete -o default -F _pycnictl {PROGRAM}",
    ]
    return "\n".join(lines) + "\n"


# --- zsh -------------------------------------------------------------------------------------------------------------


def zsh(some: Sequence[Place]) -> str:
    """For zsh, to be sourced or found by its function path."""
    lines = [
        f"#compdef {PROGRAM}",
        "_pycnictl() {",
        "    local where=pycnictl word",
        "    local -i index",
        "    local -a commands options",
        "    for ((index = 2; index < CURRENT; index++)); do",
        '        word="$words[index]"',
        '        [[ "$word" = -- ]] && { _default; return }',
        '        case "$where/$word" in',
        f'        ({_paths(some)}) where="$where/$word" ;;',
        "        esac",
        "    done",
        '    case "$where $words[CURRENT-1]" in',
    ]
    for what, option in _values(some):
        if option.lab:
            lines.append(f"    ({shlex.quote(what)}) compadd -- {LABS}/*(N:t); return ;;")
        elif option.choices:
            lines.append(f"    ({shlex.quote(what)}) compadd -- {shlex.join(option.choices)}; return ;;")
        else:
            lines.append(f"    ({shlex.quote(what)}) _default; return ;;")
    lines += ["    esac", '    case "$where" in']
    for place in some:
        commands = [_described(name, text) for name, text in place.commands]
        options = [_described(flag, item.help) for item in place.options for flag in item.flags]
        lines.append(
            f"    ({place.path}) commands=({shlex.join(commands)}); options=({shlex.join(options)}) ;;"
        )
    lines += [
        "    esac",
        '    if [[ "$words[CURRENT]" = -* ]]; then',
        "        _describe -o option options",
        "    elif (( $#commands )); then",
        "        _describe command commands",
        "    else",
        "        _default",
        "    fi",
        "}",
        'if [[ "$funcstack[1]" = _pycnictl ]]; then',
        '    _pycnictl "$@"',
        "else",
        f"    compdef _pycnictl {PROGRAM}",
        "fi",
    ]
    return "\n".join(lines) + "\n"


def _described(name: str, text: str) -> str:
    return f"{name}:{text}" if text else name


# --- fish ------------------------------------------------------------------------------------------------------------


def fish(some: Sequence[Place]) -> str:
    """For fish 3.4 and later."""
    lines = [
        "function __pycnictl_at",
        "    set -l where pycnictl",
        "    for word in (commandline -opc)[2..-1]",
        '        test "$word" = --; and return 1',
        '        switch "$where/$word"',
        f"            case {' '.join(place.path for place in some[1:])}",
        '                set where "$where/$word"',
        "        end",
        "    end",
        '    test "$where" = "$argv[1]"',
        "end",
        f"complete -c {PROGRAM} -e",
    ]
    for place in some:
        here = f"complete -c {PROGRAM} -n {_fish(f'__pycnictl_at {place.path}')}"
        for name, text in place.commands:
            lines.append(f"{here} -f -a {_fish(name)}{_about(text)}")
        for option in place.options:
            words = [
                f"-l {_fish(flag[2:])}" if flag.startswith("--") else f"-s {_fish(flag[1:])}"
                for flag in option.flags
            ]
            if option.lab:
                words.append(f"-x -a {_fish(f'(ls {LABS} 2>/dev/null)')}")
            elif option.choices:
                words.append(f"-x -a {_fish(' '.join(option.choices))}")
            elif option.takes:
                words.append("-r")
            lines.append(f"{here} {' '.join(words)}{_about(option.help)}")
    return "\n".join(lines) + "\n"


def _about(text: str) -> str:
    return f" -d {_fish(text)}" if text else ""


def _fish(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


SCRIPTS: Mapping[str, Callable[[Sequence[Place]], str]] = {"bash": bash, "zsh": zsh, "fish": fish}
