"""In-memory stand-ins for the kernel's side of the CNI operations, with state and failure switches."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from pycni.agent.cni_netns import Namespaces
from pycni.agent.cni_ops import CniOps
from pycni.agent.cni_ports import Interface
from pycni.agent.delegate import Delegates
from pycni.attach.names import names
from pycni.attach.plan import AttachPlan
from pycni.attach.result import AttachedLinks
from pycni.errors import KernelError
from pycni.ipam.endpoints import EndpointStore
from pycni.ipam.pool import Pools
from pycni.model.endpoint import Endpoint, Owner
from pycni.model.family import Network
from pycni.model.podnet import PodNetwork

Answer = tuple[int, bytes]


class FakeNamespaces(Namespaces):
    """Namespaces are plain descriptors; the interfaces in each are a set of names."""

    def __init__(self) -> None:
        self.interfaces: dict[int, set[str]] = {}
        self.node: int | None = None

    def make(self) -> int:
        fd = os.memfd_create("netns")
        self.interfaces[fd] = {"lo"}
        return fd

    def is_namespace(self, fd: int) -> bool:
        return fd in self.interfaces

    def is_node(self, fd: int) -> bool:
        return fd == self.node

    def has_interface(self, fd: int, name: str) -> bool:
        return name in self.interfaces[fd]

    def inode(self, fd: int) -> int:
        return 1000 + fd

    def close(self) -> None:
        for fd in self.interfaces:
            os.close(fd)


class FakePods:
    """What is attached, by host end. ``slow``: devices go only when somebody hurries or ``finish`` is called."""

    def __init__(self, namespaces: FakeNamespaces) -> None:
        self.namespaces = namespaces
        self.attached: dict[str, tuple[AttachPlan, int]] = {}
        self.dying: list[Callable[[], None]] = []
        self.slow = False
        self.never = False
        self.fail: dict[str, Exception] = {}
        self.faults: list[str] = []
        self.seen: list[str] = []
        self.resynced: list[AttachPlan] = []
        self.lock = threading.Lock()

    def _maybe_fail(self, operation: str) -> None:
        self.seen.append(operation)
        error = self.fail.pop(operation, None)
        if error is not None:
            raise error

    def attach(self, plan: AttachPlan, netns_fd: int) -> AttachedLinks:
        self._maybe_fail("attach")
        with self.lock:
            inside = self.namespaces.interfaces[netns_fd]
            if plan.ifname in inside or plan.host in self.attached:
                raise KernelError(17, "create interface", plan.ifname)
            inside.add(plan.ifname)
            self.attached[plan.host] = (plan, netns_fd)
        return AttachedLinks(plan.host, 7, plan.names.host_mac, 3, plan.mac, plan.mtu, b"\2\0\0\0\0\1")

    def detach(
        self,
        owner: Owner,
        netns_fd: int | None,
        addresses: Iterable[Interface],
        on_gone: Callable[[], None] | None,
    ) -> bool:
        self._maybe_fail("detach")
        with self.lock:
            found = self.attached.pop(names(owner).host, None)
        done = on_gone or (lambda: None)
        if found is None:
            if netns_fd is not None:
                self.namespaces.interfaces[netns_fd].discard(owner.ifname)
            done()
            return False
        plan, fd = found

        def gone() -> None:
            self.namespaces.interfaces[fd].discard(plan.ifname)
            done()

        if self.slow:
            self.dying.append(gone)
        else:
            gone()
        return True

    def finish(self) -> None:
        dying, self.dying = self.dying, []
        for gone in dying:
            gone()

    def hurry(self) -> None:
        if not self.never:
            threading.Timer(0.01, self.finish).start()

    def check(self, plan: AttachPlan, netns_fd: int) -> Sequence[str]:
        self._maybe_fail("check")
        here = self.attached.get(plan.host)
        if here is None:
            return [f"interface {plan.ifname} is missing in the pod", *self.faults]
        missing = [
            f"address {address.text()} is missing"
            for address in plan.addresses
            if address not in here[0].addresses
        ]
        return missing + self.faults

    def resync(self, plans: Iterable[AttachPlan]) -> list[str]:
        self._maybe_fail("resync")
        self.resynced = list(plans)
        return ["a bridge"]


class Gate:
    """A policy component: who is admitted."""

    def __init__(self) -> None:
        self.admitted: dict[Owner, Endpoint] = {}
        self.fail: Exception | None = None
        self.fail_attached: Exception | None = None
        self.fail_gone: Exception | None = None
        self.attachments: list[Endpoint] = []
        """Endpoints that had their devices when we were told."""

    def admit(self, endpoint: Endpoint, _netns_fd: int | None = None) -> None:
        self.admitted[endpoint.owner] = endpoint
        if self.fail is not None:
            raise self.fail

    def attached(self, endpoint: Endpoint) -> None:
        assert self.admitted[endpoint.owner].addresses == endpoint.addresses
        self.attachments.append(endpoint)
        if self.fail_attached is not None:
            raise self.fail_attached

    def gone(self, endpoint: Endpoint) -> None:
        self.admitted.pop(endpoint.owner, None)
        if self.fail_gone is not None:
            raise self.fail_gone


def podnet(*subnets: Network) -> PodNetwork:
    return PodNetwork(
        subnets=subnets, networks=tuple(net.supernet(prefixlen_diff=8) for net in subnets), mtu=1450
    )


class Plugin:
    """An IPAM plugin in CNI_PATH: a shell script that notes its calls and answers as told."""

    def __init__(self, folder: Path, name: str = "ipam-fake") -> None:
        self.folder, self.name = folder, name
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / name
        self.path.write_text(
            f"#!/bin/sh\ncd {folder}\ncat > $CNI_COMMAND.stdin\nenv > $CNI_COMMAND.env\necho $CNI_COMMAND >> calls\n"
            "test -e $CNI_COMMAND.sh && . ./$CNI_COMMAND.sh\n"
            "test -e $CNI_COMMAND.out && cat $CNI_COMMAND.out\n"
            "test -e $CNI_COMMAND.rc && exit $(cat $CNI_COMMAND.rc)\nexit 0\n"
        )
        self.path.chmod(0o755)

    def answers(self, command: str, output: object, code: int = 0) -> None:
        text = output if isinstance(output, str) else json.dumps(output)
        (self.folder / f"{command}.out").write_text(text)
        (self.folder / f"{command}.rc").write_text(str(code))

    def runs(self, command: str, script: str) -> None:
        (self.folder / f"{command}.sh").write_text(script)

    @property
    def calls(self) -> list[str]:
        file = self.folder / "calls"
        return file.read_text().split() if file.exists() else []

    def stdin(self, command: str) -> bytes:
        return (self.folder / f"{command}.stdin").read_bytes()

    def env(self, command: str) -> dict[str, str]:
        lines = (self.folder / f"{command}.env").read_text().splitlines()
        return {key: value for key, _, value in (line.partition("=") for line in lines)}


class Node:
    """One node's CNI side on fakes for the kernel and real files for addresses and records."""

    def __init__(self, folder: Path, *subnets: Network) -> None:
        self.folder = folder
        self.namespaces = FakeNamespaces()
        self.pods = FakePods(self.namespaces)
        self.gate = Gate()
        self.podnet: PodNetwork | None = podnet(*subnets)
        self.reason = ""
        self.plugin = Plugin(folder / "bin")
        self.errors: list[tuple[str, int]] = []
        self.delegates = Delegates(timeout_s=2.0, fallback_path=(str(self.plugin.folder),))
        self.start()

    def start(self) -> None:
        self.endpoints = EndpointStore(str(self.folder / "state"))
        self.pools = Pools(str(self.folder / "networks"), in_use=self.endpoints.in_use)
        self.ops = CniOps(
            ipam=self.pools,
            endpoints=self.endpoints,
            pods=self.pods,
            podnet=lambda: self.podnet,
            not_ready_reason=lambda: self.reason,
            boot_id="boot",
            gates=[self.gate],
            delegates=self.delegates,
            namespaces=self.namespaces,
            on_error=lambda *error: self.errors.append(error),
        )

    def restart(self) -> None:
        """A new agent process on what the old one left on disk and in the kernel."""
        self.stop()
        self.pods.dying.clear()
        self.start()

    def stop(self) -> None:
        self.endpoints.close()
        self.pools.close()

    def close(self) -> None:
        self.stop()
        self.namespaces.close()

    def call(self, command: str, stdin: bytes, fd: int | None = None, **env: str) -> Answer:
        environment = {
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": "c1",
            "CNI_NETNS": f"/run/netns/{fd}" if fd is not None else "",
            "CNI_IFNAME": "eth0",
            "CNI_PATH": str(self.plugin.folder),
        } | {f"CNI_{key}": value for key, value in env.items()}
        return self.ops.handle({key: value for key, value in environment.items() if value}, stdin, fd)

    def add(self, stdin: bytes, fd: int, **env: str) -> dict[str, Any]:
        code, output = self.call("ADD", stdin, fd, **env)
        assert code == 0, output
        result: dict[str, Any] = json.loads(output)
        return result

    def reserved(self, network: str = "net") -> dict[str, tuple[str, str]]:
        owners = self.pools("", network).owners()
        return {str(ip): (owner.container_id, owner.ifname) for owner, ips in owners.items() for ip in ips}

    @property
    def clean(self) -> bool:
        """Nothing is left of any attachment."""
        return not (self.pods.attached or self.endpoints.all() or self.reserved() or self.gate.admitted)


def error(answer: Answer) -> dict[str, Any]:
    assert answer[0] == 1, answer
    decoded: dict[str, Any] = json.loads(answer[1])
    assert "Traceback" not in answer[1].decode()
    return decoded
