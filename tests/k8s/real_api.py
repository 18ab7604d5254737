"""The real kube-apiserver with an etcd of its own, from the folder that KUBEBUILDER_ASSETS names.

The variable and the folder (``etcd``, ``kube-apiserver``) are those of controller-runtime's envtest. Everything is on
loopback, in one temporary folder, and gone afterwards.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import yaml

from tests.k8s.kube_tools import make_pki

ASSETS = os.environ.get("KUBEBUILDER_ASSETS", "")
START_S = 60.0


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


@contextlib.contextmanager
def real_api(folder: Path) -> Iterator[str]:
    """Start both; the path of a kubeconfig for an administrator."""
    make_pki(folder)
    client, peer, secure = free_port(), free_port(), free_port()
    etcd = [
        f"{ASSETS}/etcd",
        f"--data-dir={folder}/etcd",
        f"--listen-client-urls=http://127.0.0.1:{client}",
        f"--advertise-client-urls=http://127.0.0.1:{client}",
        f"--listen-peer-urls=http://127.0.0.1:{peer}",
        "--unsafe-no-fsync",
    ]
    apiserver = [
        f"{ASSETS}/kube-apiserver",
        f"--etcd-servers=http://127.0.0.1:{client}",
        "--bind-address=127.0.0.1",
        f"--secure-port={secure}",
        f"--tls-cert-file={folder}/server.crt",
        f"--tls-private-key-file={folder}/server.key",
        f"--client-ca-file={folder}/ca.crt",
        f"--cert-dir={folder}",
        "--authorization-mode=RBAC",
        "--service-cluster-ip-range=10.0.0.0/24",
        "--service-account-issuer=https://localhost",
        f"--service-account-key-file={folder}/ca.key",
        f"--service-account-signing-key-file={folder}/ca.key",
        "--disable-admission-plugins=ServiceAccount",
        "--watch-cache=true",
    ]
    with contextlib.ExitStack() as exits:
        for name, command in (("etcd", etcd), ("kube-apiserver", apiserver)):
            log = exits.enter_context((folder / f"{name}.log").open("wb"))
            process = subprocess.Popen(command, stdout=log, stderr=log)
            exits.callback(process.wait, 30)
            exits.callback(process.terminate)
        document = {
            "current-context": "c",
            "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
            "clusters": [
                {
                    "name": "k",
                    "cluster": {"server": f"https://127.0.0.1:{secure}", "certificate-authority": "ca.crt"},
                }
            ],
            "users": [
                {"name": "u", "user": {"client-certificate": "client.crt", "client-key": "client.key"}}
            ],
        }
        (folder / "kubeconfig").write_text(yaml.safe_dump(document))
        _await_ready(f"https://127.0.0.1:{secure}", folder)
        yield str(folder / "kubeconfig")


def _await_ready(url: str, folder: Path) -> None:
    import ssl

    context = ssl.create_default_context(cafile=str(folder / "ca.crt"))
    context.load_cert_chain(folder / "client.crt", folder / "client.key")
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
    )
    deadline = time.monotonic() + START_S
    for path in ("/readyz", "/api/v1/namespaces/default", "/api/v1/namespaces/kube-system"):
        while True:
            try:
                opener.open(url + path, timeout=5).close()
                break
            except OSError as exc:
                if time.monotonic() > deadline:
                    raise AssertionError(
                        f"{path}: {exc}\n{(folder / 'kube-apiserver.log').read_text()[-3000:]}"
                    ) from exc
                time.sleep(0.2)
