"""``pycnictl doctor``: what is wrong with a node, or small for its task, and what to do about it.

Looks at the namespace it runs in, or at all nodes of a lab (``--name``). ``--fix`` sets the switches that can be set
without harm and records what was before; ``--undo`` takes that back. Nothing else is ever changed.

Exit codes: 0 nothing worse than things to know, 1 errors (or it could not look), 2 a wrong command line, 3 warnings, no
errors. With ``--fix`` it counts what is left; with ``--undo`` 1 says that something could not be put back.

Life: a ``Place`` is where facts are read and switches set: here, in a namespace of a lab's node, or, for a node with a
kernel of its own, over there, by this module run as a program that takes a ``Request`` on standard input.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import msgspec

from pycni.doctor import report
from pycni.doctor.judge import changes, judge
from pycni.doctor.model import Change, Facts, Finding
from pycni.errors import PycniError
from pycni.kernel import hostfacts, netns, spacestate, switchset
from pycni.kernel.switchset import Outcome
from pycni.model.space import LinkState
from pycni.wire import typed

if TYPE_CHECKING:
    from pycni.lab.node import LabNode
    from pycni.lab.run import Lab
    from pycni.lab.topology import LabSpec

T = TypeVar("T")
RECORD = "doctor.json"
"""Beside a lab node's other files."""
NEIGHBOURS = 8
"""Other nodes of a lab that each node sends pings to."""
TOGETHER = 8
_OVER_THERE_S = 60.0


class DoctorError(PycniError):
    """A node cannot be looked at."""


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What is done on a node's kernel."""

    do: Literal["look", "apply", "undo"] = "look"
    node: str = ""
    namespace: str = ""
    """Name below /run/netns; "": where it runs."""
    uses: tuple[str, ...] | None = None
    device: str = ""
    peers: tuple[bytes, ...] | None = None
    conf_folder: str = hostfacts.NET_DIR
    pods: Mapping[str, str] = {}
    """Namespaces by pod."""
    record: str = ""
    """File; "": that of the namespace."""
    changes: tuple[Change, ...] = ()


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """A node."""

    request: Request
    over_there: tuple[str, ...] = ()
    """Words before a command that run it where the node's kernel is; none: this kernel."""
    machine: Mapping[str, str] = {}

    @property
    def node(self) -> str:
        """Its name; "" for this one."""
        return self.request.node


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--fix", action="store_true", help="set the switches that can be set without harm")
    what.add_argument("--undo", action="store_true", help="take back what --fix has done")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--name", default="", metavar="LAB", help="look at all nodes of a lab (default: this node)"
    )
    parser.add_argument(
        "--net-dir",
        default=hostfacts.NET_DIR,
        metavar="FOLDER",
        help=f"where the runtime's networks are (default: {hostfacts.NET_DIR}; a lab's are known)",
    )
    parser.add_argument(
        "--no-ping", action="store_true", help="do not try which packets get to the other nodes"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Look, or set, or put back; returns the exit code."""
    if os.geteuid():
        raise DoctorError("the doctor looks into the kernel, which needs root")
    places = _of_lab(args) if args.name else [_here(args)]
    if args.undo:
        return _undo(places, as_json=args.json)
    nodes = [place.node for place in places]
    found = judge(_each(places, _look))
    outcomes: dict[str, Outcome] = {}
    if args.fix:
        wanted = changes(found)
        outcomes = dict(zip(nodes, _each(places, lambda place: _apply(place, wanted)), strict=True))
        found = judge(_each(places, _look))
    done = {node: item.done for node, item in outcomes.items() if item.done}
    trouble = _troubles(outcomes)
    if args.json:
        more = {"fixed": report.changes_json(done), "trouble": trouble} if args.fix else {}
        print(json.dumps({**report.as_json(found, nodes), **more}, indent=2))
    else:
        _tell_fixed(done, trouble, asked=args.fix)
        print(report.as_text(found, nodes, colour=sys.stdout.isatty()))
    return _code(found, trouble)


def _code(found: Sequence[Finding], trouble: Sequence[str]) -> int:
    levels = {item.level for item in found}
    if trouble or "error" in levels:
        return 1
    return 3 if "warning" in levels else 0


def _troubles(outcomes: Mapping[str, Outcome]) -> list[str]:
    return [f"{node}: {text}" if node else text for node, item in outcomes.items() for text in item.trouble]


def _tell_fixed(done: Mapping[str, Sequence[Change]], trouble: Sequence[str], *, asked: bool) -> None:
    if not asked:
        return
    for line in _lines(done):
        print(f"set      {line}")
    for text in trouble:
        print(f"pycnictl: {text}", file=sys.stderr)
    if not done:
        print("nothing to set")
        return
    print("to keep them over a reboot, in /etc/sysctl.d/90-pycni.conf:")
    for line in report.sysctl_lines(done):
        print(f"         {line}")
    print()


def _lines(changed: Mapping[str, Sequence[Change]]) -> list[str]:
    return [
        f"{f'{node}: ' if node else ''}{item.name}: {item.before} -> {item.after}"
        for node, items in changed.items()
        for item in items
    ]


def _undo(places: Sequence[Place], *, as_json: bool) -> int:
    undo = [msgspec.structs.replace(place.request, do="undo") for place in places]
    outcomes = dict(
        zip(
            [place.node for place in places],
            _each(list(zip(places, undo, strict=True)), lambda item: _ask(item[0], item[1], Outcome)),
            strict=True,
        )
    )
    done = {node: item.done for node, item in outcomes.items()}
    kept = {node: item.kept for node, item in outcomes.items()}
    trouble = _troubles(outcomes)
    if as_json:
        value = {"undone": report.changes_json(done), "kept": report.changes_json(kept), "trouble": trouble}
        print(json.dumps({"ok": not trouble, **value}, indent=2))
        return 1 if trouble else 0
    for line in _lines(done):
        print(f"put back  {line}")
    for node, items in kept.items():
        for item in items:
            where = f"{node}: " if node else ""
            print(
                f"left      {where}{item.name} is {item.before}, set by somebody else since; before it was {item.after}"
            )
    for text in trouble:
        print(f"pycnictl: {text}", file=sys.stderr)
    if not any((*done.values(), *kept.values(), trouble)):
        print("nothing to put back")
    return 1 if trouble else 0


# where


def _here(args: argparse.Namespace) -> Place:
    return Place(request=Request(conf_folder=args.net_dir, peers=() if args.no_ping else None))


def _of_lab(args: argparse.Namespace) -> list[Place]:
    """All nodes of a lab. Raises LabError."""
    from pycni.lab.run import Lab  # noqa: PLC0415 - most calls are for no lab

    lab = Lab.open(args.name)
    return [_of_node(lab, node, ping=not args.no_ping) for node in lab.nodes()]


def _of_node(lab: Lab, node: LabNode, *, ping: bool) -> Place:
    from pycni.lab import netns as lab_netns  # noqa: PLC0415

    nodes = lab.nodes()
    at = [item.name for item in nodes].index(node.name)
    others = [*nodes[at + 1 :], *nodes[:at]][:NEIGHBOURS]
    request = Request(
        node=node.name,
        namespace=node.namespace,
        uses=_uses(lab.spec),
        device=lab_netns.UPLINK,
        peers=tuple(item.ip.packed for other in others for item in other.addresses.values()) if ping else (),
        conf_folder=str(node.conflist.parent),
        pods={
            pod.name: pod.namespace
            for pod in lab.pods()
            if pod.node == node.name and pod.namespace and pod.namespace != node.namespace
        },
        record=str(node.folder / RECORD),
    )
    own_kernel = not node.namespace
    return Place(
        request=request,
        over_there=tuple(lab.exec_argv(node.name, [])) if own_kernel else (),
        machine={} if own_kernel else hostfacts.machine(),
    )


def _uses(spec: LabSpec) -> tuple[str, ...]:
    from pycni.doctor.features import USES  # noqa: PLC0415

    words = {spec.attach, spec.backend, f"proxy-{spec.proxy}", f"policy-{spec.policy}"}
    words |= {family.label for family in spec.families}
    return tuple(word for word in USES if word in words)


# doing


def _each(items: Sequence[Any], function: Callable[[Any], T]) -> list[T]:
    if len(items) == 1:
        return [function(items[0])]
    with ThreadPoolExecutor(TOGETHER) as pool:
        return list(pool.map(function, items))


def _look(place: Place) -> Facts:
    facts = _ask(place, place.request, Facts)
    return msgspec.structs.replace(facts, machine=place.machine)


def _apply(place: Place, wanted: Mapping[str, tuple[Change, ...]]) -> Outcome:
    own = wanted.get(place.node, ())
    if not own:
        return Outcome()
    return _ask(place, msgspec.structs.replace(place.request, do="apply", changes=own), Outcome)


def _ask(place: Place, request: Request, kind: type[T]) -> T:
    """What a node answers. Raises DoctorError, and what ``do`` raises where that is this kernel."""
    if not place.over_there:
        found = do(request)
        assert isinstance(found, kind)
        return found
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    words = [*place.over_there, "env", f"PYTHONPATH={root}", sys.executable, "-P", "-m", "pycni.cli_doctor"]
    try:
        done = subprocess.run(
            words, input=msgspec.json.encode(request), capture_output=True, check=False, timeout=_OVER_THERE_S
        )
    except subprocess.TimeoutExpired as exc:
        raise DoctorError(f"{request.node} does not answer within {exc.timeout:g} s") from exc
    if done.returncode:
        words_ = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise DoctorError(f"{request.node}: {words_ or 'it cannot be looked at'}")
    return typed.decode(done.stdout, kind)


def do(request: Request) -> Facts | Outcome:
    """A request on this kernel. Raises KernelError, ConfigError, OSError."""
    return _within(request.namespace, partial(_do, request))


def _do(request: Request) -> Facts | Outcome:
    file = request.record or switchset.place()
    if request.do == "apply":
        return switchset.apply(request.changes, file)
    if request.do == "undo":
        return switchset.undo(file)
    facts = hostfacts.read(
        request.node,
        uses=request.uses,
        device=request.device,
        peers=request.peers,
        conf_folder=request.conf_folder,
    )
    pods = {name: _within(space, _links) for name, space in request.pods.items()}
    return msgspec.structs.replace(facts, pods=pods)


def _links() -> tuple[LinkState, ...]:
    return tuple(spacestate.read(firewall=False, devices=()).links.values())


def _within(namespace: str, function: Callable[[], T]) -> T:
    """In a named namespace; "": as it is."""
    if not namespace:
        return function()
    fd = netns.open_netns(netns.path(namespace))
    try:
        return netns.run_in(fd, function)
    finally:
        os.close(fd)


def _main() -> int:
    try:
        sys.stdout.buffer.write(msgspec.json.encode(do(typed.decode(sys.stdin.buffer.read(), Request))))
    except (PycniError, OSError) as exc:
        print(exc, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(_main())
