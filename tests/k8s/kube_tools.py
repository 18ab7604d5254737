"""What the tests of the Kubernetes sources share: a source running against the scripted server, and objects."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import time
from pathlib import Path

from pycni.sources.kube import KubeSource
from pycni.sources.kube_auth import Access
from pycni.sources.kube_client import KubeClient
from pycni.sources.kube_config import find
from pycni.store import Store


def service(name, ip="10.0.0.1", namespace="d", **spec):
    return {"metadata": {"name": name, "namespace": namespace}, "spec": {"clusterIP": ip, **spec}}


def node(name, *cidrs, **annotations):
    told = {f"flannel.alpha.coreos.com/{key.replace('_', '-')}": value for key, value in annotations.items()}
    meta = {"name": name, "annotations": told}
    return {"metadata": meta, "spec": {"podCIDR": cidrs[0] if cidrs else "", "podCIDRs": list(cidrs)}}


async def until(condition, what="the condition", seconds=60.0):
    """Wait for a condition; says which one did not come true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come true within {seconds} s"
        await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def running(*coroutines):
    """Run these while the block runs; what they raise fails the test."""
    tasks = [asyncio.ensure_future(each) for each in coroutines]
    try:
        yield tasks
    finally:
        failed = [task for task in tasks if task.done()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for task in failed:
            await task


@contextlib.asynccontextmanager
async def client_of(server, config=None, **options):
    client = KubeClient(Access(config or find("", server.url)), **options)
    try:
        yield client
    finally:
        await client.close()


@contextlib.asynccontextmanager
async def following(server, *kinds, client_options=None, **options):
    """A KubeSource on its way into a store; its longest pause is short."""
    store = Store()
    async with client_of(server, **(client_options or {})) as client:
        source = KubeSource(client, kinds or ["Service"], **{"longest_pause_s": 0.2, **options})
        async with running(source.run(store)):
            yield source, store


def names(store, kind="Service"):
    return sorted(key.rpartition("/")[2] for key in store.snapshot().of(kind))


def make_pki(folder: Path) -> None:
    """A throwaway CA (ca.crt), a server's pair (server.*) for 127.0.0.1 and api.test, a client's (client.*)."""

    def openssl(*words):
        subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True, timeout=60)

    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    openssl(
        "req", "-x509", *curve, "-keyout", "ca.key", "-out", "ca.crt", "-days", "2", "-subj", "/CN=test-ca"
    )
    for name, extra in (
        ("server", "subjectAltName=IP:127.0.0.1,DNS:api.test"),
        ("client", "extendedKeyUsage=clientAuth"),
    ):
        (folder / f"{name}.ext").write_text(extra + "\n")
        openssl(
            "req",
            *curve,
            "-keyout",
            f"{name}.key",
            "-out",
            f"{name}.csr",
            "-subj",
            f"/CN={name}/O=system:masters",
        )
        openssl(
            "x509", "-req", "-in", f"{name}.csr", "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial",
            "-out", f"{name}.crt", "-days", "2", "-extfile", f"{name}.ext",
        )  # fmt: skip
