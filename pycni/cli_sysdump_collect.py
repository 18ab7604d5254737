"""What a bug report needs of one node, collected where the node is: in its network namespace, or on its kernel.

Life: ``collect`` asks the agent everything it tells, reads its log and what it keeps on disk, asks the kernel by its
own tools, looks into the pods' network namespaces, and removes secrets from all of it. An agent that is dead, a tool
that is missing and a file that cannot be read leave a line in ``not-collected.txt``. Run as a program, for nodes that
are not here, it writes a tar archive to standard output: ``python -m pycni.cli_sysdump_collect SOCKET``.

Files that hold keys are never read into the bundle: of the agent's folders only known files are.
"""

from __future__ import annotations

import io
import itertools
import json
import os
import platform
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pycni import __version__, cli_agent
from pycni.cli_agent import AgentError
from pycni.cli_sysdump_secrets import Secrets

LIMIT = 8 << 20
"""Bytes of one file; of logs the last, of all else the first are kept."""
TIMEOUT_S = 15.0
PODS = 250
STATE_DIR = "/var/lib/pycni"
QUESTIONS = {
    "status.json": "/status",
    "settings.json": "/settings",
    "readyz.json": "/readyz?verbose",
    "metrics.txt": "/metrics",
    "dump.jsonl": "/dump",
    "ipam.json": "/ipam",
    "ipam-check.json": "/ipam/check",
    "services.json": "/services",
    "policies.json": "/policies",
    "bgp.json": "/bgp",
    "wireguard.json": "/wireguard",
}
SPACE = {
    "ip-link.txt": "ip -d -s link show",
    "ip-address.txt": "ip address show",
    "ip-route.txt": "ip -4 route show table all",
    "ip-route6.txt": "ip -6 route show table all",
    "ip-rule.txt": "ip -4 rule show",
    "ip-rule6.txt": "ip -6 rule show",
    "ip-neighbour.txt": "ip -s neighbour show",
    "sockets.txt": "ss -tulnp",
    "nft.txt": "nft list ruleset",
}
"""Asked in the node's namespace and in every pod's."""
NODE = {
    **SPACE,
    "bridge-fdb.txt": "bridge fdb show",
    "bridge-link.txt": "bridge -d link show",
    "bridge-vlan.txt": "bridge vlan show",
    "tc.txt": "tc -s qdisc show",
    "iptables.txt": "iptables-save",
    "ip6tables.txt": "ip6tables-save",
    "iptables-legacy.txt": "iptables-legacy-save",
    "ipset.txt": "ipset list",
    "ipvs.txt": "ipvsadm -Ln --stats",
    "wireguard.txt": "wg show all",  # hides private and pre-shared keys; "dump" would not
    "conntrack-stats.txt": "conntrack -S",
    "modules.txt": "lsmod",
    "dmesg.txt": "dmesg --ctime",
}
NEEDS = {
    "ipset.txt": "/sys/module/ip_set",
    "ipvs.txt": "/proc/net/ip_vs",
    "wireguard.txt": "/sys/module/wireguard",
    "conntrack-stats.txt": "/proc/net/stat/nf_conntrack",
}
"""Without it the command would have the kernel load a module."""
PROC = (
    "/proc/version",
    "/proc/cmdline",
    "/proc/meminfo",
    "/proc/loadavg",
    "/proc/uptime",
    "/proc/net/dev",
    "/proc/net/snmp",
    "/proc/net/netstat",
    "/proc/net/softnet_stat",
    "/proc/sys/net/netfilter/nf_conntrack_count",
    "/etc/os-release",
)
SYSCTLS = (
    "/proc/sys/net/core",
    "/proc/sys/net/ipv4",
    "/proc/sys/net/ipv6",
    "/proc/sys/net/bridge",
    "/proc/sys/net/netfilter",
)
CNI_CONFS = "/etc/cni/net.d"


class Bundle:
    """Texts by name."""

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}
        self.missing: list[str] = []
        self.secrets = Secrets()

    def add(self, name: str, text: str, *, last: bool = False) -> None:
        """Keep a text; of a long one the beginning, or the end."""
        if len(text) > LIMIT:
            cut = f"(cut: {len(text)} characters)\n"
            text = cut + text[-LIMIT:] if last else text[:LIMIT] + "\n" + cut
        self.texts[name] = text

    def read(self, path: str | Path) -> str:
        """A file's text; "" and a line about it when it cannot be read."""
        try:
            return Path(path).read_text(encoding="utf-8", errors="replace")
        except OSError as exc:
            self.missing.append(f"{path}: {exc.strerror or exc}")
            return ""

    def run(self, name: str, words: Sequence[str]) -> None:
        """Keep what a command says, also when it fails."""
        line = " ".join(words)
        try:
            done = subprocess.run(
                words, capture_output=True, check=False, timeout=TIMEOUT_S, stdin=subprocess.DEVNULL
            )
        except FileNotFoundError:
            self.missing.append(f"{line}: no such command here")
            return
        except (OSError, subprocess.SubprocessError) as exc:
            self.missing.append(f"{line}: {exc}")
            return
        text = f"$ {line}\n{done.stdout.decode(errors='replace')}"
        if done.returncode:
            text += f"(exit code {done.returncode}) {done.stderr.decode(errors='replace')}"
        self.add(name, text)

    def cleaned(self) -> dict[str, str]:
        """All of it without secrets."""
        self.add("not-collected.txt", "".join(f"{line}\n" for line in self.missing))
        for text in self.texts.values():
            self.secrets.learn(text)
        return {self.secrets.clean(name): self.secrets.clean(text) for name, text in self.texts.items()}


def collect(socket: str) -> dict[str, str]:
    """Everything of the node this runs on, by name in the bundle, without secrets."""
    bundle = Bundle()
    _about(bundle, socket)
    settings, pid = _agent(bundle, socket)
    state_dir = str(settings.get("state-dir") or _state_dir(socket))
    _known_secrets(bundle, settings, pid, state_dir)
    if pid:
        _log(bundle, pid)
    _state(bundle, state_dir, settings)
    for name, line in NODE.items():
        if name not in NEEDS or os.path.exists(NEEDS[name]):
            bundle.run(f"node/{name}", line.split())
    _kernel(bundle)
    _pods(bundle, state_dir)
    return bundle.cleaned()


def _about(bundle: Bundle, socket: str) -> None:
    lines = {
        "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "pycni": __version__,
        "python": sys.version.replace("\n", " "),
        "kernel": " ".join(platform.uname()),
        "asked": socket,
    }
    bundle.add("about.txt", "".join(f"{name}: {text}\n" for name, text in lines.items()))


def _agent(bundle: Bundle, socket: str) -> tuple[Mapping[str, Any], int]:
    """What the agent tells. Returns its settings and process id: {} and 0 when it tells nothing."""
    found: dict[str, Any] = {}
    for name, target in QUESTIONS.items():
        try:
            text = cli_agent.fetch(socket, target).decode(errors="replace")
        except AgentError as exc:
            bundle.missing.append(f"agent {target}: {exc}")
            if not exc.status and name == "status.json":
                break
            continue
        bundle.add(f"agent/{name}", text)
        if name in ("status.json", "settings.json"):
            found[name] = json.loads(text)
    return found.get("settings.json", {}), int(found.get("status.json", {}).get("pid", 0))


def _state_dir(socket: str) -> str:
    beside = os.path.join(os.path.dirname(socket), "state")
    return beside if os.path.isdir(beside) else STATE_DIR


def _known_secrets(bundle: Bundle, settings: Mapping[str, Any], pid: int, state_dir: str) -> None:
    """What this node holds of secrets, from where the agent has it."""
    secrets = bundle.secrets
    for name in ("etcd-password-file", "peer-router-passwords-file", "ospf-password-file"):
        path = str(settings.get(name) or "")
        for word in bundle.read(path).replace(",", " ").split() if path else ():
            secrets.add(word)
    for pattern in ("wireguard.key*", ".wireguard.key*"):
        for key in Path(state_dir).glob(pattern):
            secrets.add(bundle.read(key))
    secrets.learn(bundle.read(f"{state_dir}/lease.json"))
    if settings.get("kubeconfig"):
        secrets.learn(bundle.read(str(settings["kubeconfig"])))
    if pid:
        environment = bundle.read(f"/proc/{pid}/environ").split("\0")
        words = bundle.read(f"/proc/{pid}/cmdline").split("\0")
        secrets.learn("\n".join(environment))
        secrets.learn("\n".join(words))
        for name, value in itertools.pairwise(words):
            if name.lstrip("-") == "etcd-password":
                secrets.add(value)
        for line in (*environment, *words):
            name, _, value = line.partition("=")
            if name.lstrip("-").lower().replace("_", "-").endswith("etcd-password"):
                secrets.add(value)
        for file in _configuration(environment, words):
            secrets.learn(bundle.read(file))


def _configuration(environment: Sequence[str], words: Sequence[str]) -> Iterable[str]:
    """The agent's configuration file, where it has one."""
    for index, word in enumerate(words):
        name, _, value = word.lstrip("-").partition("=")
        if word.startswith("-") and name == "config":
            yield value or (words[index + 1] if index + 1 < len(words) else "")
    yield from (line.partition("=")[2] for line in environment if line.startswith("PYCNID_CONFIG="))


def _log(bundle: Bundle, pid: int) -> None:
    """The agent's log: the file it writes to, else what the journal has of it."""
    try:
        path = os.readlink(f"/proc/{pid}/fd/2")
    except OSError as exc:
        bundle.missing.append(f"log of process {pid}: {exc.strerror}")
        return
    if os.path.isfile(path):
        with open(path, "rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(file.tell() - LIMIT, 0))
            bundle.add("agent/log.txt", file.read().decode(errors="replace"), last=True)
    else:
        bundle.run("agent/log.txt", ["journalctl", "--no-pager", "-o", "cat", "-n", "20000", f"_PID={pid}"])


def _state(bundle: Bundle, state_dir: str, settings: Mapping[str, Any]) -> None:
    """What the agent keeps, and the CNI configuration. Keys are listed, not read."""
    folders = {"state": state_dir}
    if settings.get("ipam-data-dir"):
        folders["ipam"] = str(settings["ipam-data-dir"])
    for name, folder in folders.items():
        lines = []
        for path in sorted(Path(folder).rglob("*")):
            try:
                info = path.lstat()
            except OSError:
                continue  # it went meanwhile, as a record of a pod does
            when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(info.st_mtime))
            lines.append(f"{info.st_mode:06o} {info.st_size:8d} {when} {path.relative_to(folder)}\n")
        bundle.add(f"{name}/listing.txt", "".join(lines))
    kept = {"state": [Path(state_dir) / "lease.json", *sorted(Path(state_dir).glob("endpoints/*.json*"))]}
    kept["bgp"] = sorted(Path(str(settings.get("bgp-dir") or f"{state_dir}/bgp")).glob("*.conf"))
    kept["cni"] = sorted(Path(CNI_CONFS).glob("*.conf*"))
    for name, paths in kept.items():
        for path in paths:
            if path.is_file():
                bundle.add(f"{name}/{path.name}", bundle.read(path))
    subnet = str(settings.get("subnet-file") or "")
    if subnet and os.path.isfile(subnet):
        bundle.add("state/subnet.env", bundle.read(subnet))


def _kernel(bundle: Bundle) -> None:
    for file in PROC:
        if os.path.exists(file):
            bundle.add(f"kernel/{file.strip('/').replace('/', '-')}.txt", bundle.read(file))
    lines = []
    for folder in SYSCTLS:
        for path in sorted(Path(folder).rglob("*")):
            try:
                if path.is_file():
                    value = path.read_text(errors="replace").strip()
                    lines.append(f"{str(path)[10:].replace('/', '.')} = {value}\n")
            except OSError:
                continue  # write-only, or of a device that went
    bundle.add("kernel/sysctl.txt", "".join(lines))


def _pods(bundle: Bundle, state_dir: str) -> None:
    """The network namespaces of this node's pods, as their records have them."""
    seen: set[str] = set()
    records = sorted(Path(state_dir).glob("endpoints/*.json"))
    for path in records:
        try:
            record = json.loads(path.read_text())
        except (OSError, ValueError) as exc:
            bundle.missing.append(f"{path.name}: {exc}")
            continue
        where = str(record.get("netns") or "")
        if not where or where in seen:
            continue
        if len(seen) == PODS:
            bundle.missing.append(f"pods beyond the first {PODS} of {len(records)}")
            return
        seen.add(where)
        if not os.path.exists(where):
            bundle.missing.append(f"pod {path.stem}: {where} is gone")
            continue
        pod = (
            f"{record.get('pod_namespace')}_{record.get('pod_name')}" if record.get("pod_name") else path.stem
        )
        for name, line in SPACE.items():
            bundle.run(f"pods/{pod}/{name}", ["nsenter", f"--net={where}", "--", *line.split()])


def write(archive: tarfile.TarFile, texts: Mapping[str, str], folder: str) -> None:
    """Put texts into an archive, readable by their owner only."""
    for name, text in texts.items():
        content = text.encode(errors="replace")
        entry = tarfile.TarInfo(f"{folder}/{name}" if folder else name)
        entry.size, entry.mode, entry.mtime = len(content), 0o600, int(time.time())
        archive.addfile(entry, io.BytesIO(content))


if __name__ == "__main__":
    with tarfile.open(fileobj=sys.stdout.buffer, mode="w|") as stream:
        write(stream, collect(sys.argv[1]), "")
