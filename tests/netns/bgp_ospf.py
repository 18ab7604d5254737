"""FRR as a neighbour for OSPF."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from pycni.kernel import netns as namespaces
from tests.netns.bgp_nodes import Switch, execute
from tests.netns.bgp_routers import FRR, vtysh


class FrrOspf:
    """FRR's zebra, ospfd and ospf6d: a neighbour for OSPF of both families, with routes in its kernel."""

    def __init__(self, switch: Switch, number: int, password: str) -> None:
        self.where = switch.join(number)
        # These run as their own user, who has no way into the tests' folders.
        self._folder = Path(tempfile.mkdtemp(prefix=f"pyt{os.getpid()}-"))
        shutil.chown(self._folder, "frr", "frr")
        for words in ("203.0.113.1/24", "2001:db8:203::1/64"):
            execute(self.where, f"ip address add {words} dev lo")
        conf = {
            "zebra": "",
            "ospfd": f"""
                interface eth0
                 ip ospf hello-interval 1
                 ip ospf dead-interval 4
                 ip ospf authentication message-digest
                 ip ospf message-digest-key 1 md5 {password}
                router ospf
                 capability opaque
                 graceful-restart helper enable
                 ospf router-id 192.0.2.{number}
                 network 192.0.2.0/24 area 0
                 network 203.0.113.0/24 area 0
                """,
            "ospf6d": f"""
                interface eth0
                 ipv6 ospf6 area 0
                 ipv6 ospf6 hello-interval 1
                 ipv6 ospf6 dead-interval 4
                interface lo
                 ipv6 ospf6 area 0
                router ospf6
                 graceful-restart helper enable
                 ospf6 router-id 192.0.2.{number}
                """,
        }
        self.processes = {}
        for name, text in conf.items():
            (self._folder / f"{name}.conf").write_text(text)
            self.processes[name] = self.begin(name)
            # Who comes before zebra looks for it again after ten seconds only.
            while not (self._folder / "zserv.api").exists():
                assert self.processes["zebra"].poll() is None, "zebra has ended"
                time.sleep(0.02)

    def kill(self, name: str) -> None:
        """One daemon."""
        self.processes[name].kill()
        self.processes[name].wait()

    def begin(self, name: str) -> subprocess.Popen[bytes]:
        """Start one daemon."""
        self.processes[name] = subprocess.Popen(
            [*namespaces.exec_prefix(self.where), FRR / name, "-f", self._folder / f"{name}.conf", "-i", self._folder / f"{name}.pid",
             "-z", self._folder / "zserv.api", "--vty_socket", self._folder, "-P", "0"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        return self.processes[name]

    def neighbours(self) -> str:
        """What ospfd says of its neighbours."""
        return vtysh(self.where, self._folder, "ospfd", "show ip ospf neighbor")

    def routes(self) -> set[str]:
        """Destinations OSPF brought into its kernel."""
        return {
            line.split()[0]
            for family in ("-4", "-6")
            for line in execute(self.where, f"ip {family} route show proto ospf").splitlines()
            if line and not line.startswith(("\t", " "))
        }

    def end(self) -> None:
        """Kill all of it."""
        for process in self.processes.values():
            process.kill()
            process.wait()
        shutil.rmtree(self._folder)
