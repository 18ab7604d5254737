"""How to reach the Kubernetes API: a kubeconfig file, an address, or what every pod is given.

Life: ``find`` is called once at the start and raises ConfigError for what cannot work; ``kube_auth.Access`` keeps the
credentials fresh from then on. Of a kubeconfig file only the chosen context is read; relative file names in it are
relative to the file. HTTPS_PROXY and the like are not honoured. Formats: kubeconfig v1 (client-go, clientcmd/api/v1),
service account files of a pod.

Nothing secret is in a repr or an error: values come from a file full of keys, so errors name fields only.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import msgspec
import yaml

from pycni.errors import ConfigError

SERVICE_ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
_HIDDEN = "(hidden)"
_EXEC_VERSIONS = ("client.authentication.k8s.io/v1", "client.authentication.k8s.io/v1beta1")


class Server(NamedTuple):
    """An API server's address."""

    host: str
    port: int
    tls: bool
    prefix: str = ""
    """Path in front of every request, without a slash at its end."""

    @property
    def authority(self) -> str:
        """For the Host header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    def __str__(self) -> str:
        return f"{'https' if self.tls else 'http'}://{self.authority}{self.prefix}"


class Pem(msgspec.Struct, frozen=True):
    """Certificates or a key: in a file, which may be replaced at any time, or in the configuration itself."""

    path: str = ""
    data: bytes = b""

    def __repr__(self) -> str:
        return f"Pem({self.path or _HIDDEN})"


class ExecSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A credential plug-in: what kubeconfig says about it."""

    api_version: str
    command: str
    args: tuple[str, ...] = ()
    env: tuple[tuple[str, str], ...] = ()
    install_hint: str = ""
    cluster_info: Mapping[str, Any] | None = None
    """``spec.cluster`` of the ExecCredential it is given; None unless it wants one."""

    def __repr__(self) -> str:
        return f"ExecSpec(command={self.command!r})"


class KubeConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Everything needed to speak to one API server as one user."""

    server: Server
    source: str
    """Where this comes from, for messages."""
    server_name: str = ""
    """Name the server's certificate has to have; "" for the host's."""
    insecure: bool = False
    """Do not verify the server's certificate, as somebody asked for."""
    ca: Pem | None = None
    """None: the system's authorities."""
    certificate: Pem | None = None
    key: Pem | None = None
    token: str = ""
    token_file: str = ""
    username: str = ""
    password: str = ""
    plugin: ExecSpec | None = None

    def __repr__(self) -> str:
        return f"KubeConfig(server={str(self.server)!r}, source={self.source!r})"


def find(
    kubeconfig: str = "",
    api_url: str = "",
    *,
    context: str = "",
    account: str = SERVICE_ACCOUNT,
    environ: Mapping[str, str] = os.environ,
) -> KubeConfig:
    """The settings in force: the file's, else those of the pod this runs in, ``api_url`` overriding their server; the
    address alone outside of pods.

    A pod that makes Services work should not reach the API through one: it names the server. Raises ConfigError.
    """
    if kubeconfig:
        return load(kubeconfig, context=context, api_url=api_url)
    if api_url and environ.get("KUBERNETES_SERVICE_HOST") and os.path.exists(os.path.join(account, "token")):
        server = parse_server("kube settings", "kube-api-url", api_url)
        return msgspec.structs.replace(in_cluster(account, environ), server=server)
    if api_url:
        return KubeConfig(
            server=parse_server("kube settings", "kube-api-url", api_url), source="kube-api-url"
        )
    return in_cluster(account, environ)


def in_cluster(account: str = SERVICE_ACCOUNT, environ: Mapping[str, str] = os.environ) -> KubeConfig:
    """The service account of the pod this runs in. Raises ConfigError outside of one."""
    host, port = environ.get("KUBERNETES_SERVICE_HOST", ""), environ.get("KUBERNETES_SERVICE_PORT", "")
    obj = "kube settings"
    if not host or not port:
        raise ConfigError(
            obj,
            "kubeconfig",
            "",
            "outside a pod (KUBERNETES_SERVICE_HOST is not set) kubeconfig or kube-api-url is needed",
        )
    if not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise ConfigError(obj, "KUBERNETES_SERVICE_PORT", port, "expected 1..65535")
    token_file, ca = os.path.join(account, "token"), os.path.join(account, "ca.crt")
    _readable(obj, "token", token_file)
    _readable(obj, "ca.crt", ca)
    return KubeConfig(
        server=Server(host.strip("[]"), int(port), tls=True),
        source="service account",
        ca=Pem(path=ca),
        token_file=token_file,
    )


def load(path: str, *, context: str = "", api_url: str = "") -> KubeConfig:
    """A kubeconfig file; ``context`` "" for its current one. Raises ConfigError."""
    config = _Section(_parse(path), f"kubeconfig {path}", "")
    context = context or config.text("current-context")
    if context:
        chosen = config.named("contexts", "context", context)
    elif len(config.items("contexts")) == 1:
        chosen = config.named("contexts", "context", str(config.items("contexts")[0].get("name")))
    else:
        raise config.error("current-context", "", "expected the name of one of its contexts")
    cluster = config.named("clusters", "cluster", chosen.text("cluster", needed=True))
    name = chosen.text("user")
    user = config.named("users", "user", name) if name else _Section({}, config.obj, "user.")
    if cluster.text("proxy-url"):
        reason = "connections through a proxy are not supported; reach the API server directly"
        raise cluster.error("proxy-url", _HIDDEN, reason)
    for field in ("auth-provider", "as"):
        if user.given(field):
            raise user.error(field, _HIDDEN, "not supported; use a token, a client certificate or exec")
    url = api_url or cluster.text("server", needed=True)
    folder = os.path.dirname(os.path.abspath(path))
    server = parse_server(config.obj, "server", url)
    insecure = cluster.flag("insecure-skip-tls-verify")
    ca = None if insecure else cluster.pem("certificate-authority", folder)
    certificate, key = user.pem("client-certificate", folder), user.pem("client-key", folder)
    if (certificate is None) != (key is None):
        raise user.error("client-key", _HIDDEN, "client-certificate and client-key go together")
    token_file = user.path("tokenFile", folder)
    if token_file:
        _readable(config.obj, "tokenFile", token_file)
    return KubeConfig(
        server=server,
        source=path,
        server_name=cluster.text("tls-server-name"),
        insecure=insecure,
        ca=ca,
        certificate=certificate,
        key=key,
        token="" if token_file else user.text("token"),
        token_file=token_file,
        username=user.text("username"),
        password=user.text("password"),
        plugin=_plugin(user, cluster, server, ca, folder),
    )


def parse_server(obj: str, field: str, url: str) -> Server:
    """``https://host:port/prefix``, the port being the scheme's when absent. Raises ConfigError."""
    bad = ConfigError(obj, field, re.sub(r"//[^/@]*@", "//", url), "expected https://HOST[:PORT][/PREFIX]")
    try:
        parts = urlsplit(url if "://" in url else f"https://{url}")
        host, port = parts.hostname, parts.port
    except ValueError:
        raise bad from None
    if parts.scheme not in ("http", "https") or not host or parts.query or parts.fragment or parts.username:
        raise bad
    if not (host + parts.path).isascii() or re.search(r"[\x00-\x20\x7f]", url):
        raise bad
    tls = parts.scheme == "https"
    return Server(host, port or (443 if tls else 80), tls, parts.path.rstrip("/"))


def _plugin(
    user: _Section, cluster: _Section, server: Server, ca: Pem | None, folder: str
) -> ExecSpec | None:
    """The exec entry of a user."""
    found = user.section("exec")
    if found is None:
        return None
    version = found.text("apiVersion", needed=True)
    if version not in _EXEC_VERSIONS:
        raise found.error("apiVersion", version, f"expected one of {', '.join(_EXEC_VERSIONS)}")
    if found.text("interactiveMode") == "Always":
        raise found.error("interactiveMode", "Always", "nobody is there to answer an agent's plug-in")
    command = found.text("command", needed=True)
    if "/" in command and not command.startswith("/"):
        command = os.path.join(folder, command)
    info: dict[str, Any] | None = None
    if found.flag("provideClusterInfo"):
        info = {"server": str(server), "insecure-skip-tls-verify": cluster.flag("insecure-skip-tls-verify")}
        if cluster.text("tls-server-name"):
            info["tls-server-name"] = cluster.text("tls-server-name")
        if ca is not None:
            info["certificate-authority-data"] = base64.b64encode(
                read_pem(user.obj, "certificate-authority", ca)
            ).decode()
        for extension in cluster.items("extensions"):
            if extension.get("name") == "client.authentication.k8s.io/exec":
                info["config"] = extension.get("extension")
    env = []
    for entry in found.items("env"):
        name, value = entry.get("name"), entry.get("value", "")
        if (
            not isinstance(name, str)
            or not isinstance(value, str)
            or not name
            or "=" in name
            or "\0" in name + value
        ):
            raise found.error("env", name, "expected entries of a name and a value, both texts")
        env.append((name, value))
    return ExecSpec(
        api_version=version,
        command=command,
        args=found.texts("args"),
        env=tuple(env),
        install_hint=found.text("installHint"),
        cluster_info=info,
    )


def read_pem(obj: str, field: str, pem: Pem) -> bytes:
    """The contents. Raises ConfigError."""
    if not pem.path:
        return pem.data
    try:
        with open(pem.path, "rb") as file:
            data = file.read(1 << 20)
    except OSError as exc:
        raise ConfigError(obj, field, pem.path, exc.strerror or str(exc)) from None
    if b"-----BEGIN" not in data:
        raise ConfigError(obj, field, pem.path, "expected a PEM file")
    return data


class _Section:
    """A mapping of the file. Errors name fields, and values only where they are not secret."""

    def __init__(self, members: Any, obj: str, path: str) -> None:
        self.obj = obj
        self._path = path
        if not isinstance(members, dict):
            raise ConfigError(
                obj, path.rstrip(".") or "document", type(members).__name__, "expected a mapping"
            )
        self._members: dict[Any, Any] = members

    def error(self, field: str, value: object, reason: str) -> ConfigError:
        return ConfigError(self.obj, self._path + field, value, reason)

    def given(self, field: str) -> bool:
        return bool(self._members.get(field))

    def text(self, field: str, *, needed: bool = False) -> str:
        value = self._members.get(field)
        if value is None or value == "":
            if needed:
                raise self.error(field, "", "is needed")
            return ""
        if not isinstance(value, str):
            raise self.error(field, _HIDDEN, f"expected a text, found {type(value).__name__}")
        if any(ord(char) < 32 or ord(char) == 127 for char in value.strip()) and not field.endswith("-data"):
            raise self.error(field, _HIDDEN, "has control characters")
        return value.strip() if field != "password" else value

    def flag(self, field: str) -> bool:
        value = self._members.get(field)
        if value is None or isinstance(value, bool):
            return bool(value)
        raise self.error(field, value, "expected true or false")

    def items(self, field: str) -> list[dict[Any, Any]]:
        value = self._members.get(field) or []
        if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
            raise self.error(field, _HIDDEN, "expected a list of mappings")
        return value

    def texts(self, field: str) -> tuple[str, ...]:
        value = self._members.get(field) or []
        if not isinstance(value, list) or not all(
            isinstance(each, str) and "\0" not in each for each in value
        ):
            raise self.error(field, _HIDDEN, "expected a list of texts")
        return tuple(value)

    def section(self, field: str) -> _Section | None:
        value = self._members.get(field)
        return None if value is None else _Section(value, self.obj, f"{self._path}{field}.")

    def named(self, field: str, inner: str, name: str) -> _Section:
        """``inner`` of the entry called ``name``; the first one counts, as for kubectl."""
        for entry in self.items(field):
            if entry.get("name") == name:
                return _Section(entry.get(inner) or {}, self.obj, f"{field}[{name}].{inner}.")
        raise self.error(field, name, "there is no entry of this name")

    def path(self, field: str, folder: str) -> str:
        value = self.text(field)
        return os.path.join(folder, value) if value else ""

    def pem(self, field: str, folder: str) -> Pem | None:
        """Certificates or a key: the embedded ones count before a file's. They are looked at right away."""
        encoded = self.text(f"{field}-data")
        if encoded:
            try:
                pem = Pem(data=base64.b64decode("".join(encoded.split()), validate=True))
            except (binascii.Error, ValueError):
                raise self.error(f"{field}-data", _HIDDEN, "expected base64") from None
            if b"-----BEGIN" not in pem.data:
                raise self.error(f"{field}-data", _HIDDEN, "expected PEM in base64")
            return pem
        path = self.path(field, folder)
        if not path:
            return None
        read_pem(self.obj, self._path + field, Pem(path=path))
        return Pem(path=path)


def _parse(path: str) -> Any:
    try:
        with open(path, "rb") as file:
            raw = file.read(4 << 20)
    except OSError as exc:
        raise ConfigError("kube settings", "kubeconfig", path, exc.strerror or str(exc)) from None
    try:
        return yaml.safe_load(raw)
    except (yaml.YAMLError, ValueError, RecursionError, OverflowError) as exc:
        # The parser's own text shows the line, and with it maybe a key.
        mark = getattr(exc, "problem_mark", None)
        where = f"line {mark.line + 1}" if mark is not None else "document"
        raise ConfigError(f"kubeconfig {path}", where, _HIDDEN, "this is no YAML") from None


def _readable(obj: str, field: str, path: str) -> None:
    try:
        with open(path, "rb"):
            pass
    except OSError as exc:
        raise ConfigError(obj, field, path, exc.strerror or str(exc)) from None
