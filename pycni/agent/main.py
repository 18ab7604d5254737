"""The command ``pycnid``: which of its four jobs is meant, and every failure as one line and an exit code.

    pycnid [run] [settings]    the node agent (``agent.process``)
    pycnid install-cni ...     put the CNI plugin on this host (``agent.install``)
    pycnid uninstall-cni ...   take it away again
    pycnid version

Exit codes: 0 done or stopped by a signal, 1 failed, 2 wrong settings or usage. What a job needs is imported when it
is known which one it is.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pycni import __version__
from pycni.errors import ConfigError, PycniError

if TYPE_CHECKING:
    import argparse

USAGE = """usage: pycnid [run] [settings]
       pycnid install-cni [--help | options]
       pycnid uninstall-cni [--help | options]
       pycnid version
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one job; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    job = words.pop(0) if words and not words[0].startswith("-") else "run"
    if job == "version" or (job == "run" and words and words[0] in ("-version", "--version")):
        print(f"pycnid {__version__}")
        return 0
    try:
        if job == "run":
            return _run(words)
        if job == "install-cni":
            return _install(words)
        if job == "uninstall-cni":
            return _uninstall(words)
    except BrokenPipeError:
        return 1
    return _complain([f"{job}: no such command", *USAGE.splitlines()], 2)


def _complain(lines: Sequence[str], code: int) -> int:
    for line in lines:
        print(f"pycnid: {line}", file=sys.stderr)
    return code


def _run(words: list[str]) -> int:
    from pycni.agent.settings import SettingsError  # noqa: PLC0415
    from pycni.agent.settings_file import load  # noqa: PLC0415

    if words and words[0] in ("-h", "-help", "--help"):
        from pycni.agent.settings_text import help_text  # noqa: PLC0415

        print(USAGE + "\n" + help_text(), end="")
        return 0
    try:
        loaded = load(words, os.environ)
    except SettingsError as exc:
        return _complain([str(problem) for problem in exc.problems], 2)
    from pycni.agent import logs, process, wiring  # noqa: PLC0415

    logs.configure(loaded.settings.log_level, loaded.settings.log_format)
    return process.run(loaded, wiring.wire)


def _parser(job: str, text: str) -> argparse.ArgumentParser:
    import argparse  # noqa: PLC0415

    parser = argparse.ArgumentParser(f"pycnid {job}", description=text, allow_abbrev=False)
    parser.add_argument("--cni-bin-dir", type=Path, default=Path("/opt/cni/bin"), metavar="DIR")
    parser.add_argument("--cni-conf-dir", type=Path, default=Path("/etc/cni/net.d"), metavar="DIR")
    return parser


def _install(words: list[str]) -> int:
    parser = _parser("install-cni", "Put the CNI plugin and its configuration where container runtimes look.")
    add = parser.add_argument
    add("--socket", default="/run/pycni/cni.sock", help="where pycnid listens (its cni-socket)")
    add("--network-name", default="", help="name of the network; flannel's is cbr0 (default: pycni)")
    add(
        "--conflist",
        type=Path,
        metavar="FILE",
        help="configuration list to install instead of the built-in one",
    )
    add(
        "--with-interpreter",
        nargs="?",
        const="auto",
        default="",
        metavar="PYTHON",
        help="bundle a minimal Python beside the plugin, for hosts without /usr/bin/python3",
    )
    add(
        "--host-bin-dir",
        default="",
        help="--cni-bin-dir as the host sees it, when it is mounted elsewhere here",
    )
    add(
        "--exclusive",
        action="store_true",
        help="put other CNI configurations aside (uninstall-cni puts them back)",
    )
    add("--force", action="store_true", help="replace files that pycni did not install, keeping a copy")
    found = parser.parse_args(words)
    from pycni.agent import install  # noqa: PLC0415

    interpreter = found.with_interpreter
    if interpreter == "auto":
        interpreter = "/usr/bin/python3" if os.path.exists("/usr/bin/python3") else sys.executable
    options = install.Options(
        bin_dir=found.cni_bin_dir,
        conf_dir=found.cni_conf_dir,
        socket=found.socket,
        network_name=found.network_name,
        conflist=found.conflist,
        interpreter=interpreter,
        host_bin_dir=found.host_bin_dir.rstrip("/"),
        force=found.force,
        exclusive=found.exclusive,
    )
    return _report(lambda: install.install(options))


def _uninstall(words: list[str]) -> int:
    parser = _parser("uninstall-cni", "Take away what install-cni put there, and nothing else.")
    found = parser.parse_args(words)
    from pycni.agent import install  # noqa: PLC0415

    return _report(
        lambda: install.uninstall(found.cni_bin_dir, found.cni_conf_dir) or ["nothing is installed there"]
    )


def _report(job: Callable[[], list[str]]) -> int:
    try:
        lines = job()
    except ConfigError as exc:
        return _complain([str(exc)], 2)
    except (PycniError, OSError) as exc:
        return _complain([str(exc)], 1)
    for line in lines:
        print(line, file=sys.stderr if line.startswith("warning: ") else sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
