"""Fixtures with etcd servers; use by ``pytest_plugins = ["tests.lab.etcd_fixtures"]``.

Everything is below a folder of the test's own and ends with it.
"""

import contextlib
import itertools
import os
import subprocess
import tempfile

import pytest

from tests.lab.etcd_tools import Servers

ORIGINS = ("debian", "distro")
_numbers = itertools.count()


@contextlib.contextmanager
def _servers(origin):
    folder = "/dev/shm" if os.path.isdir("/dev/shm") else None  # etcd 3.4 always syncs: spare the disk
    with tempfile.TemporaryDirectory(prefix=f"pyt{os.getpid()}-etcd-", dir=folder) as path:
        servers = Servers(path, origin)
        try:
            yield servers
        finally:
            servers.stop()


@pytest.fixture(params=ORIGINS)
def servers(request):
    """A place to start servers of each version in."""
    with _servers(request.param) as found:
        yield found


@pytest.fixture
def modern():
    """A place to start servers in, where the version does not matter."""
    with _servers("distro") as found:
        yield found


@pytest.fixture(scope="session", params=ORIGINS)
def etcd(request):
    """A running server of each version, shared: tests keep to their ``prefix`` and leave it running."""
    with _servers(request.param) as found:
        yield found.start()


@pytest.fixture
def prefix():
    """A key prefix of the test's own."""
    return f"/pyt{os.getpid()}/{next(_numbers)}"


@pytest.fixture(scope="session")
def certificates(tmp_path_factory):
    """A folder with a CA, a server certificate for 127.0.0.1 and client certificates ``agent`` and ``root``."""
    folder = tmp_path_factory.mktemp("certificates")
    ssl = ["openssl"]
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]

    def run(*words):
        subprocess.run([*ssl, *words], cwd=folder, check=True, capture_output=True, timeout=20)

    run("req", "-x509", *curve, "-subj", "/CN=test-ca", "-keyout", "ca.key", "-out", "ca.pem")
    for name, extension in (
        ("server", "subjectAltName=IP:127.0.0.1\nextendedKeyUsage=serverAuth,clientAuth"),
        ("agent", "extendedKeyUsage=clientAuth"),
        ("root", "extendedKeyUsage=clientAuth"),
    ):
        (folder / f"{name}.ext").write_text(extension + "\n")
        run("req", *curve, "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.csr")
        run("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial",
            "-days", "2", "-extfile", f"{name}.ext", "-out", f"{name}.pem")  # fmt: skip
    return folder
