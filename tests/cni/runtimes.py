"""Real container runtimes for the tests: containerd through CRI and podman, each inside one node namespace.

Everything a runtime writes is below one folder of the test's own; ``stop()`` ends the processes it started and
unmounts what they left mounted.
"""

from __future__ import annotations

import hashlib
import importlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import grpc

from pycni.agent import install

REFERENCE_PLUGINS = Path("/usr/lib/cni")
SHIM = Path(__file__).resolve().parents[2] / "cni-bin" / "pycni"
IMAGE = "docker.io/library/pause:1"


def inside(netns: str) -> list[str]:
    """Prefix that runs a command in a named namespace without remounting /sys (as `ip netns exec` would)."""
    return ["nsenter", f"--net=/run/netns/{netns}", "--"]


def plugin_folder(folder: Path, socket: str = "") -> Path:
    """One folder with the reference plugins and ours, as /opt/cni/bin on a node.

    ``socket``: ours is written as `pycnid install-cni --socket` does. Some callers give plugins no environment of
    ours: podman's clean-up, started by conmon when a container ends.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for plugin in REFERENCE_PLUGINS.iterdir():
        (folder / plugin.name).symlink_to(plugin)
    ours = folder / "pycni"
    if socket:
        ours.write_text(install.precompile(install.render_shim(SHIM.read_text(), "/usr/bin/python3", socket)))
        ours.chmod(0o755)
    else:
        ours.symlink_to(SHIM)
    return folder


def busybox_image(target: Path, command: list[str]) -> Path:
    """A docker-archive with one layer holding a static busybox; written to ``target``."""
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        for name in ("bin", "etc", "tmp"):
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(entry)
        tar.add("/bin/busybox", "bin/busybox")
        for applet in ("sh", "sleep", "ip", "ping", "nc", "cat"):
            link = tarfile.TarInfo(f"bin/{applet}")
            link.type, link.linkname = tarfile.SYMTYPE, "/bin/busybox"
            tar.addfile(link)
    blob = layer.getvalue()
    config = json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Cmd": command, "Env": ["PATH=/bin"]},
            "rootfs": {"type": "layers", "diff_ids": ["sha256:" + hashlib.sha256(blob).hexdigest()]},
        }
    ).encode()
    manifest = [{"Config": "config.json", "RepoTags": [IMAGE], "Layers": ["layer.tar"]}]
    with tarfile.open(target, "w") as tar:
        for name, data in (
            ("layer.tar", blob),
            ("config.json", config),
            ("manifest.json", json.dumps(manifest).encode()),
        ):
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return target


def _cri_stubs(folder: Path) -> ModuleType:
    """Message classes generated from cri.proto."""
    from grpc_tools import protoc

    folder.mkdir(parents=True, exist_ok=True)
    here = Path(__file__).parent
    if protoc.main(["protoc", f"-I{here}", f"--python_out={folder}", str(here / "cri.proto")]):
        raise RuntimeError("cri.proto does not compile")
    sys.path.insert(0, str(folder))
    try:
        return importlib.import_module("cri_pb2")
    finally:
        sys.path.remove(str(folder))


def unmount_below(folder: Path) -> None:
    """Unmount everything below a folder, deepest first."""
    mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    for mount in sorted((m for m in mounts if m.startswith(str(folder))), reverse=True):
        subprocess.run(["umount", "-l", mount], check=False)


class Containerd:
    """containerd in a node's namespace, spoken to through CRI. ``folder`` must be short (socket paths)."""

    def __init__(self, netns: str, folder: Path, conflist: dict[str, Any], socket: str) -> None:
        self.netns, self.folder = netns, folder
        self.bin = plugin_folder(folder / "bin", socket)
        self.conf = folder / "net.d"
        self.conf.mkdir()
        self.socket = folder / "c.sock"
        self.write_conflist(conflist)
        (folder / "config.toml").write_text(self._config())
        self.log = (folder / "containerd.log").open("wb")
        self.process = subprocess.Popen(
            [*inside(netns), "containerd", "--config", str(folder / "config.toml")],
            stdout=self.log,
            stderr=self.log,
        )
        self.pb = _cri_stubs(folder / "pb")
        self.channel = grpc.insecure_channel(f"unix://{self.socket}")
        try:
            self._wait_ready()
            image = busybox_image(folder / "image.tar", ["/bin/sleep", "1000"])
            self._ctr("-n", "k8s.io", "images", "import", str(image))
        except BaseException:
            self.stop()
            raise

    def _config(self) -> str:
        cri = 'plugins."io.containerd.grpc.v1.cri"'
        return f"""version = 2
root = "{self.folder}/root"
state = "{self.folder}/state"
disabled_plugins = ["io.containerd.internal.v1.opt"]
[grpc]
  address = "{self.socket}"
[{cri}]
  sandbox_image = "{IMAGE}"
  restrict_oom_score_adj = true
  disable_apparmor = true
  stream_server_port = "0"
  stream_server_address = "127.0.0.1"
[{cri}.cni]
  bin_dir = "{self.bin}"
  conf_dir = "{self.conf}"
[{cri}.containerd]
  snapshotter = "overlayfs"
[{cri}.containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
[{cri}.containerd.runtimes.runc.options]
  SystemdCgroup = false
"""

    def write_conflist(self, conflist: dict[str, Any]) -> None:
        (self.conf / "10-test.conflist").write_text(json.dumps(conflist))

    def _ctr(self, *args: str) -> str:
        done = subprocess.run(
            ["ctr", "-a", str(self.socket), *args], capture_output=True, text=True, check=False, timeout=60
        )
        if done.returncode:
            raise RuntimeError(f"ctr {args}: {done.stderr}")
        return done.stdout

    def _wait_ready(self) -> None:
        deadline = time.monotonic() + 30
        while True:
            try:
                self.call("Version", self.pb.VersionRequest(version="v1"), self.pb.VersionResponse)
                return
            except grpc.RpcError:
                if time.monotonic() > deadline or self.process.poll() is not None:
                    raise
                time.sleep(0.05)

    def call(self, method: str, request: Any, reply: Any, timeout: float = 30) -> Any:
        stub = self.channel.unary_unary(
            f"/runtime.v1.RuntimeService/{method}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=reply.FromString,
        )
        return stub(request, timeout=timeout)

    def run_pod(self, name: str, ports: list[dict[str, Any]] | None = None, **annotations: str) -> str:
        """RunPodSandbox; returns the sandbox id."""
        config = self.pb.PodSandboxConfig(
            metadata=self.pb.PodSandboxMetadata(name=name, uid=f"uid-{name}", namespace="default"),
            hostname=name,
            log_directory=str(self.folder / "logs"),
            port_mappings=[self.pb.PortMapping(**port) for port in ports or []],
            annotations=annotations,
            linux=self.pb.LinuxPodSandboxConfig(cgroup_parent=f"/{self.folder.name}"),
        )
        reply = self.call(
            "RunPodSandbox", self.pb.RunPodSandboxRequest(config=config), self.pb.RunPodSandboxResponse
        )
        return str(reply.pod_sandbox_id)

    def stop_pod(self, sandbox: str) -> None:
        self.call("StopPodSandbox", self.pb.PodSandboxRequest(pod_sandbox_id=sandbox), self.pb.Empty)

    def remove_pod(self, sandbox: str) -> None:
        self.call("RemovePodSandbox", self.pb.PodSandboxRequest(pod_sandbox_id=sandbox), self.pb.Empty)

    def pod_status(self, sandbox: str) -> tuple[list[str], dict[str, Any]]:
        """Addresses of a sandbox and containerd's verbose info of it (netns path, pid, ...)."""
        reply = self.call(
            "PodSandboxStatus",
            self.pb.PodSandboxStatusRequest(pod_sandbox_id=sandbox, verbose=True),
            self.pb.PodSandboxStatusResponse,
        )
        network = reply.status.network
        ips = [ip for ip in (network.ip, *(entry.ip for entry in network.additional_ips)) if ip]
        return ips, json.loads(reply.info["info"])

    def conditions(self) -> dict[str, tuple[bool, str]]:
        """RuntimeReady and NetworkReady with their messages."""
        reply = self.call("Status", self.pb.StatusRequest(), self.pb.StatusResponse)
        return {c.type: (c.status, c.message) for c in reply.status.conditions}

    def remove_all(self) -> None:
        """Stop and remove every sandbox, also those whose start failed, as kubelet does."""
        for sandbox in self.call("ListPodSandbox", self.pb.Empty(), self.pb.ListPodSandboxResponse).items:
            self.stop_pod(sandbox.id)
            self.remove_pod(sandbox.id)

    def stop(self) -> None:
        self.channel.close()
        for pid in self._shims():
            os.kill(pid, signal.SIGKILL)
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log.close()
        unmount_below(self.folder)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _shims(self) -> list[int]:
        """Container processes and shims this containerd started: their command line or root names our folder."""
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                line = (entry / "cmdline").read_bytes().decode(errors="replace")
                cgroup = (entry / "cgroup").read_text()
            except OSError:
                continue
            ours = f"-address\0{self.socket}" in line or re.search(rf":/{self.folder.name}/", cgroup)
            if ours:
                found.append(int(entry.name))
        return found


class Podman:
    """podman with its CNI backend in a node's namespace; every call is one podman process."""

    def __init__(self, netns: str, folder: Path, conflist: dict[str, Any], socket: str) -> None:
        self.netns, self.folder = netns, folder
        plugin_folder(folder / "bin", socket)
        self.conf = folder / "net.d"
        self.conf.mkdir()
        (self.conf / f"{conflist['name']}.conflist").write_text(json.dumps(conflist))
        self.network = str(conflist["name"])
        (folder / "containers.conf").write_text(self._config())
        self.env = {**os.environ, "CONTAINERS_CONF": str(folder / "containers.conf")}
        image = busybox_image(folder / "image.tar", ["/bin/sleep", "1000"])
        self.run("load", "-q", "-i", str(image))

    def _config(self) -> str:
        return f"""[containers]
default_ulimits = ["nofile=4096:4096", "nproc=4096:4096"]
apparmor_profile = "unconfined"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
[network]
network_backend = "cni"
cni_plugin_dirs = ["{self.folder}/bin"]
network_config_dir = "{self.conf}"
default_network = "{self.network}"
"""

    def run(self, *args: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """One podman command."""
        command = [
            *inside(self.netns),
            "podman",
            f"--root={self.folder}/root",
            f"--runroot={self.folder}/run",
            f"--tmpdir={self.folder}/tmp",
            *args,
        ]
        done = subprocess.run(command, env=self.env, capture_output=True, text=True, check=False, timeout=60)
        if check and done.returncode:
            raise RuntimeError(f"podman {args}: {done.stderr}")
        return done

    def start(self, name: str, *options: str) -> list[str]:
        """Run a container in the background; returns its addresses on our network."""
        self.run("run", "-d", "--name", name, "--network", self.network, *options, IMAGE)
        settings = json.loads(self.run("inspect", name).stdout)[0]["NetworkSettings"]["Networks"]
        return [settings[self.network]["IPAddress"]]

    def stop(self) -> None:
        self.run("rm", "-f", "-a", "-t", "0", check=False)
        unmount_below(self.folder)
        shutil.rmtree(self.folder, ignore_errors=True)
