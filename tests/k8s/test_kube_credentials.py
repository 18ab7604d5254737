"""Who we are to the API and whom we believe: TLS, tokens, client certificates, plug-ins; files replaced under us."""

import asyncio
import base64
import json
import logging
import os
import ssl
import time

import pytest
import yaml

from pycni.errors import ConfigError, StoreError
from pycni.sources.kube_auth import Access
from pycni.sources.kube_client import KubeClient, Selection
from pycni.sources.kube_config import find, in_cluster, load
from pycni.sources.kube_http import KubeError
from tests.k8s.api_server import ApiServer, Lines
from tests.k8s.kube_tools import client_of, following, make_pki, names, service, until

SECRETS = ("tok-3n-s3cret", "hunter2", "BEGIN EC PRIVATE", "BEGIN PRIVATE")


@pytest.fixture(scope="module")
def pki(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pki")
    make_pki(folder)
    other = folder / "other"
    other.mkdir()
    make_pki(other)
    return folder


def server_context(pki, *, clients=False):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pki / "server.crt", pki / "server.key")
    if clients:
        context.load_verify_locations(pki / "ca.crt")
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def kubeconfig(folder, url, cluster=None, user=None, **top):
    path = folder / "kubeconfig"
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
        "clusters": [{"name": "k", "cluster": {"server": url, **(cluster or {})}}],
        "users": [{"name": "u", "user": user or {}}],
        **top,
    }
    path.write_text(yaml.safe_dump(document))
    return str(path)


def encoded(path):
    return base64.b64encode(path.read_bytes()).decode()


async def listed(server, config):
    """One request by these credentials."""
    async with client_of(server, config) as client:
        await client.list_page(Selection("Service"))


# --- whom we believe ---------------------------------------------------------------------------------------------


def test_the_servers_certificate_is_verified_by_the_files_ca(pki, tmp_path):
    async def main():
        async with ApiServer(tls=server_context(pki)) as server:
            await listed(
                server, load(kubeconfig(tmp_path, server.url, {"certificate-authority": str(pki / "ca.crt")}))
            )
            await listed(
                server,
                load(
                    kubeconfig(tmp_path, server.url, {"certificate-authority-data": encoded(pki / "ca.crt")})
                ),
            )

    asyncio.run(main())


REFUSED = [
    ("another CA", {"certificate-authority": "other/ca.crt"}, "its certificate is not accepted"),
    ("the system's authorities", {}, "its certificate is not accepted"),
    (
        "another name",
        {"certificate-authority": "ca.crt", "tls-server-name": "else.test"},
        "Hostname mismatch|not accepted",
    ),
]


@pytest.mark.parametrize(("cluster", "text"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_a_certificate_that_does_not_prove_the_server_is_refused(pki, tmp_path, cluster, text):
    async def main():
        async with ApiServer(tls=server_context(pki)) as server:
            if "certificate-authority" in cluster:
                cluster["certificate-authority"] = str(pki / cluster["certificate-authority"])
            with pytest.raises(KubeError, match=text) as caught:
                await listed(server, load(kubeconfig(tmp_path, server.url, cluster)))
            assert caught.value.transient, "somebody may put it right"
            assert server.requests == [], "no credential was sent"

    asyncio.run(main())


def test_another_server_name_and_no_verification_are_honoured_where_asked_for(pki, tmp_path):
    async def main():
        async with ApiServer(tls=server_context(pki)) as server:
            named = {"certificate-authority": str(pki / "ca.crt"), "tls-server-name": "api.test"}
            await listed(server, load(kubeconfig(tmp_path, server.url, named)))
            await listed(server, load(kubeconfig(tmp_path, server.url, {"insecure-skip-tls-verify": True})))

    asyncio.run(main())


# --- who we are --------------------------------------------------------------------------------------------------


def test_a_client_certificate_from_files_and_from_data_proves_us(pki, tmp_path):
    async def main():
        async with ApiServer(tls=server_context(pki, clients=True)) as server:
            ca = {"certificate-authority": str(pki / "ca.crt")}
            files = {"client-certificate": str(pki / "client.crt"), "client-key": str(pki / "client.key")}
            data = {
                "client-certificate-data": encoded(pki / "client.crt"),
                "client-key-data": encoded(pki / "client.key"),
            }
            await listed(server, load(kubeconfig(tmp_path, server.url, ca, files)))
            await listed(server, load(kubeconfig(tmp_path, server.url, ca, data)))
            with pytest.raises(KubeError):
                await listed(server, load(kubeconfig(tmp_path, server.url, ca)))

    asyncio.run(main())


def test_relative_names_are_relative_to_the_kubeconfig(pki, tmp_path):
    (tmp_path / "ca.crt").write_bytes((pki / "ca.crt").read_bytes())
    (tmp_path / "token").write_text("t1\n")

    async def main():
        async with ApiServer(tls=server_context(pki)) as server:
            server.tokens = {"t1"}
            config = load(
                kubeconfig(tmp_path, server.url, {"certificate-authority": "ca.crt"}, {"tokenFile": "token"})
            )
            await listed(server, config)

    asyncio.run(main())


def test_basic_and_bearer_are_sent_and_a_token_file_counts_before_a_token(tmp_path):
    (tmp_path / "token").write_text("from-file")

    async def main():
        async with ApiServer() as server:
            for user in (
                {"token": "tok"},
                {"token": "tok", "tokenFile": str(tmp_path / "token")},
                {"username": "u", "password": "p w"},
            ):
                await listed(server, load(kubeconfig(tmp_path, server.url, None, user)))
            assert [each.headers["authorization"] for each in server.requests] == [
                "Bearer tok",
                "Bearer from-file",
                "Basic " + base64.b64encode(b"u:p w").decode(),
            ]

    asyncio.run(main())


def test_a_rotated_token_file_is_read_again_and_a_missing_one_does_no_harm(tmp_path):
    token = tmp_path / "token"
    token.write_text("one")

    async def main():
        async with ApiServer() as server:
            server.tokens = {"one"}
            config = load(kubeconfig(tmp_path, server.url, None, {"tokenFile": str(token)}))
            async with client_of(server, config) as client:
                await client.list_page(Selection("Service"))
                server.tokens = {"two"}
                fresh = tmp_path / "new"
                fresh.write_text("two")
                os.replace(fresh, token)
                await client.list_page(Selection("Service"))
                token.unlink()
                await client.list_page(Selection("Service"))
                server.tokens = {"three"}
                with pytest.raises(KubeError) as caught:
                    await client.list_page(Selection("Service"))
                assert caught.value.status == 401
                token.write_text("three")
                await client.list_page(Selection("Service"))

    asyncio.run(main())


def test_a_rotated_ca_and_client_certificate_are_used_for_new_connections(pki, tmp_path):
    for name in ("ca.crt", "client.crt", "client.key"):
        (tmp_path / name).write_bytes((pki / name).read_bytes())
    user = {"client-certificate": "client.crt", "client-key": "client.key"}

    async def main():
        async with ApiServer(tls=server_context(pki, clients=True)) as server:
            config = load(kubeconfig(tmp_path, server.url, {"certificate-authority": "ca.crt"}, user))
            async with client_of(server, config) as client:
                await client.list_page(Selection("Service"))
                await client.list_page(Selection("Service"))
                assert server.connections == 1
                for name in ("client.crt", "client.key"):
                    (tmp_path / name).write_bytes((pki / "other" / name).read_bytes())
                with pytest.raises(KubeError):
                    await client.list_page(Selection("Service"))
                (tmp_path / "client.key").write_text("half written")
                with pytest.raises(StoreError):
                    await client.list_page(Selection("Service"))
                for name in ("client.crt", "client.key"):
                    (tmp_path / name).write_bytes((pki / name).read_bytes())
                await client.list_page(Selection("Service"))

    asyncio.run(main())


def test_the_pods_own_account_is_found_and_followed(pki, tmp_path):
    (tmp_path / "ca.crt").write_bytes((pki / "ca.crt").read_bytes())
    (tmp_path / "token").write_text("t1")

    async def main():
        async with ApiServer(tls=server_context(pki)) as server:
            server.tokens = {"t1"}
            environ = {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": str(server.port)}
            config = find(account=str(tmp_path), environ=environ)
            await listed(server, config)

    asyncio.run(main())


def test_the_pods_account_can_be_used_at_another_address(pki, tmp_path):
    (tmp_path / "ca.crt").write_bytes((pki / "ca.crt").read_bytes())
    (tmp_path / "token").write_text("t1")

    async def main():
        async with ApiServer(tls=server_context(pki)) as server:
            server.tokens = {"t1"}
            environ = {"KUBERNETES_SERVICE_HOST": "10.96.0.1", "KUBERNETES_SERVICE_PORT": "443"}
            await listed(server, find("", server.url, account=str(tmp_path), environ=environ))

    asyncio.run(main())


def test_outside_a_pod_something_has_to_be_said(tmp_path):
    with pytest.raises(ConfigError, match="kubeconfig or kube-api-url is needed"):
        find(environ={})
    with pytest.raises(ConfigError, match="token"):
        in_cluster(str(tmp_path), {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "KUBERNETES_SERVICE_PORT": "443"})


def test_an_address_alone_needs_no_credentials():
    async def main():
        async with ApiServer(prefix="/k8s/clusters/c-1") as server:
            server.world.put("services", service("a"))
            async with client_of(server) as client:
                assert b'"a"' in await client.get("Service", "d/a")
                assert await client.get("Service", "d/b") is None

    asyncio.run(main())


# --- plug-ins ----------------------------------------------------------------------------------------------------


def plugin(folder, answer, code=0):
    """A program that notes each run and prints an answer."""
    path = folder / "plugin"
    (folder / "answer").write_text(answer if isinstance(answer, str) else json.dumps(answer))
    path.write_text(
        f'#!/bin/sh\necho run >> "{folder}/runs"\nprintf "%s" "$KUBERNETES_EXEC_INFO" > "{folder}/info"\n'
        f'echo "$1 $WHO" > "{folder}/args"\necho trouble >&2\ncat "{folder}/answer"\nexit {code}\n'
    )
    path.chmod(0o755)
    return {
        "apiVersion": "client.authentication.k8s.io/v1",
        "command": "./plugin",
        "args": ["get-token"],
        "env": [{"name": "WHO", "value": "me"}],
        "interactiveMode": "IfAvailable",
        "provideClusterInfo": True,
        "installHint": "install the thing",
    }


def answer(expires_s=None, **status):
    if expires_s is not None:
        status["expirationTimestamp"] = time.strftime(
            "%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + expires_s)
        )
    return {"kind": "ExecCredential", "apiVersion": "client.authentication.k8s.io/v1", "status": status}


def runs(folder):
    return (folder / "runs").read_text().count("run")


def test_a_plugin_gives_a_token_that_is_kept_until_it_ends(tmp_path):
    async def main():
        async with ApiServer() as server:
            server.tokens = {"tok-1"}
            spec = plugin(tmp_path, answer(3600, token="tok-1"))
            async with client_of(
                server, load(kubeconfig(tmp_path, server.url, None, {"exec": spec}))
            ) as client:
                await client.list_page(Selection("Service"))
                await client.list_page(Selection("Service"))
                assert runs(tmp_path) == 1
            info = json.loads((tmp_path / "info").read_text())
            assert info["spec"]["cluster"]["server"] == server.url
            assert info["spec"]["interactive"] is False
            assert (tmp_path / "args").read_text() == "get-token me\n"
            plugin(tmp_path, answer(5, token="tok-1"))
            async with client_of(
                server, load(kubeconfig(tmp_path, server.url, None, {"exec": spec}))
            ) as client:
                await client.list_page(Selection("Service"))
                await client.list_page(Selection("Service"))
                assert runs(tmp_path) > 2, "one that is about to end is not used again"

    asyncio.run(main())


def test_a_refused_token_makes_the_plugin_run_again(tmp_path):
    async def main():
        async with ApiServer() as server:
            server.tokens = {"tok-1"}
            spec = plugin(tmp_path, answer(token="tok-1"))
            async with client_of(
                server, load(kubeconfig(tmp_path, server.url, None, {"exec": spec}))
            ) as client:
                await client.list_page(Selection("Service"))
                server.tokens = {"tok-2"}
                plugin(tmp_path, answer(token="tok-2"))
                await client.list_page(Selection("Service"))
                assert runs(tmp_path) == 2
                assert server.connections == 1, "the refusal did not cost the connection"

    asyncio.run(main())


def test_a_plugin_gives_a_client_certificate(pki, tmp_path):
    async def main():
        async with ApiServer(tls=server_context(pki, clients=True)) as server:
            pair = {
                "clientCertificateData": (pki / "client.crt").read_text(),
                "clientKeyData": (pki / "client.key").read_text(),
            }
            spec = plugin(tmp_path, answer(**pair))
            ca = {"certificate-authority": str(pki / "ca.crt")}
            await listed(server, load(kubeconfig(tmp_path, server.url, ca, {"exec": spec})))

    asyncio.run(main())


FAILURES = [
    ("fails", answer(token="tok-3n-s3cret"), 3, "exit code 3: trouble"),
    ("prints no JSON", "tok-3n-s3cret", 0, "prints no ExecCredential"),
    ("prints another version", {**answer(token="tok-3n-s3cret"), "apiVersion": "client.authentication.k8s.io/v1alpha1"}, 0, "prints no ExecCredential of"),
    ("gives nothing", answer(), 0, "neither a token nor a certificate"),
    ("gives a certificate without key", answer(clientCertificateData="x"), 0, "go together"),
    ("gives a header's end", answer(token="a\r\nX: tok-3n-s3cret"), 0, "no header can have"),
    ("gives a wrong time", answer(token="tok-3n-s3cret", expirationTimestamp="soon"), 0, "no RFC 3339 time"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("given", "code", "text"), [row[1:] for row in FAILURES], ids=[row[0] for row in FAILURES]
)
def test_a_plugin_that_is_no_help_is_one_clear_error_without_secrets(tmp_path, given, code, text):
    async def main():
        async with ApiServer() as server:
            config = load(kubeconfig(tmp_path, server.url, None, {"exec": plugin(tmp_path, given, code)}))
            with pytest.raises(StoreError, match=text) as caught:
                await listed(server, config)
            assert not any(secret in str(caught.value) for secret in SECRETS)
            assert server.requests == []

    asyncio.run(main())


def test_a_plugin_that_is_not_there_names_its_hint_and_one_that_hangs_is_ended(tmp_path, monkeypatch):
    spec = plugin(tmp_path, answer(token="x"))
    missing = {**spec, "command": "./nothing"}
    hanging = {**spec, "command": "/bin/sleep", "args": ["60"]}
    monkeypatch.setattr(
        "pycni.sources.kube_exec.Plugin.__init__.__kwdefaults__", {"timeout_s": 0.2, "clock": time.time}
    )

    async def main():
        async with ApiServer() as server:
            with pytest.raises(
                StoreError, match="cannot be run: No such file or directory; install the thing"
            ):
                await listed(server, load(kubeconfig(tmp_path, server.url, None, {"exec": missing})))
            with pytest.raises(StoreError, match="no answer within"):
                await listed(server, load(kubeconfig(tmp_path, server.url, None, {"exec": hanging})))

    asyncio.run(main())


# --- the file ----------------------------------------------------------------------------------------------------

URL = "https://127.0.0.1:6443"
WRONG = [
    ("a proxy", {"clusters": [{"name": "k", "cluster": {"server": URL, "proxy-url": "http://u:hunter2@p"}}]}, "proxy-url", "through a proxy"),
    ("no server", {"clusters": [{"name": "k", "cluster": {}}]}, "server", "is needed"),
    ("no URL", {"clusters": [{"name": "k", "cluster": {"server": "ftp://x"}}]}, "server", "expected https://"),
    ("a header in the URL", {"clusters": [{"name": "k", "cluster": {"server": "https://h:1/\r\nX: y"}}]}, "server", "control characters"),
    ("an unknown context", {"current-context": "x"}, "current-context|contexts", "no entry of this name"),
    ("an unknown user", {"users": []}, "users", "no entry of this name"),
    ("several contexts and none chosen", {"current-context": "", "contexts": [{"name": "a"}, {"name": "b"}]}, "current-context", "one of its contexts"),
    ("a key without certificate", {"users": [{"name": "u", "user": {"client-key-data": base64.b64encode(b"-----BEGIN EC PRIVATE").decode()}}]}, "client-key", "go together"),
    ("data that is no base64", {"users": [{"name": "u", "user": {"client-key-data": "hunter2!"}}]}, "client-key-data", "expected base64"),
    ("data that is no PEM", {"users": [{"name": "u", "user": {"client-key-data": "aHVudGVyMg=="}}]}, "client-key-data", "expected PEM"),
    ("a token that is a number", {"users": [{"name": "u", "user": {"token": 123456}}]}, "token", "found int"),
    ("a token with a line end", {"users": [{"name": "u", "user": {"token": "a\r\nhunter2"}}]}, "token", "control characters"),
    ("a legacy provider", {"users": [{"name": "u", "user": {"auth-provider": {"name": "gcp"}}}]}, "auth-provider", "not supported"),
    ("impersonation", {"users": [{"name": "u", "user": {"as": "admin"}}]}, "as", "not supported"),
    ("an interactive plug-in", {"users": [{"name": "u", "user": {"exec": {"apiVersion": "client.authentication.k8s.io/v1", "command": "x", "interactiveMode": "Always"}}}]}, "interactiveMode", "nobody is there"),
    ("an old plug-in", {"users": [{"name": "u", "user": {"exec": {"apiVersion": "client.authentication.k8s.io/v1alpha1", "command": "x"}}}]}, "apiVersion", "expected one of"),
    ("a missing file", {"clusters": [{"name": "k", "cluster": {"server": URL, "certificate-authority": "nowhere.crt"}}]}, "certificate-authority", "No such file"),
    ("users that are a map", {"users": {"u": {"token": "hunter2"}}}, "users", "list of mappings"),
]  # fmt: skip


@pytest.mark.parametrize(("top", "field", "text"), [row[1:] for row in WRONG], ids=[row[0] for row in WRONG])
def test_what_cannot_work_is_refused_at_the_start_naming_the_field_not_the_secret(tmp_path, top, field, text):
    path = kubeconfig(tmp_path, URL, **top)
    with pytest.raises(ConfigError, match=text) as caught:
        load(path)
    assert any(name in caught.value.field for name in field.split("|"))
    assert not any(secret in str(caught.value) for secret in SECRETS)


@pytest.mark.parametrize(
    "raw",
    [b"", b"- a\n", b"a: [\n  token: hunter2", b"\xff\xfe\x00", b"!!python/object:os.system hunter2", b"x"],
)
def test_a_file_that_is_no_kubeconfig_is_one_error_that_shows_none_of_it(tmp_path, raw):
    path = tmp_path / "kubeconfig"
    path.write_bytes(raw)
    with pytest.raises(ConfigError) as caught:
        load(str(path))
    assert "hunter2" not in str(caught.value)


def test_a_context_can_be_chosen_and_the_server_overridden(tmp_path):
    contexts = [
        {"name": "c", "context": {"cluster": "k", "user": "u"}},
        {"name": "d", "context": {"cluster": "l", "user": ""}},
    ]
    clusters = [
        {"name": "k", "cluster": {"server": URL}},
        {"name": "l", "cluster": {"server": "http://[::1]:8080/x/"}},
    ]
    path = kubeconfig(tmp_path, URL, contexts=contexts, clusters=clusters)
    assert str(load(path).server) == URL
    assert str(load(path, context="d").server) == "http://[::1]:8080/x"
    assert str(find(path, "https://other.test").server) == "https://other.test:443"


def test_no_secret_is_in_a_repr_or_a_log(tmp_path, caplog):
    async def main():
        async with ApiServer() as server:
            server.tokens = {"another"}
            user = {"token": "tok-3n-s3cret", "username": "u", "password": "hunter2"}
            config = load(kubeconfig(tmp_path, server.url, None, user))
            access = Access(config)
            client = KubeClient(access)
            for value in (config, access, client, [config], repr(vars(access)["_config"])):
                assert not any(secret in repr(value) for secret in SECRETS)
            async with following(server, client_options={"config": config}) as (source, _store):
                await until(lambda: "401" in source.waiting)
                assert not any(secret in source.waiting for secret in SECRETS)

    with caplog.at_level(logging.DEBUG):
        asyncio.run(main())
    assert caplog.messages
    assert not any(secret in line for line in caplog.messages for secret in SECRETS)


def test_a_watch_goes_on_over_tls_while_the_token_is_rotated(pki, tmp_path):
    (tmp_path / "token").write_text("one")

    async def main():
        async with ApiServer(tls=server_context(pki)) as server:
            server.tokens = {"one"}
            server.world.put("services", service("a"))
            server.script("services", Lines([], then="stall"), watch=True)
            config = load(
                kubeconfig(
                    tmp_path,
                    server.url,
                    {"certificate-authority": str(pki / "ca.crt")},
                    {"tokenFile": "token"},
                )
            )
            async with following(server, client_options={"config": config}) as (source, store):
                await until(lambda: source.connected)
                server.tokens = {"two"}
                (tmp_path / "token").write_text("two")
                server.world.put("services", service("b"))
                await server.cut()
                await until(lambda: names(store) == ["a", "b"])
                assert source.followers["Service"].relists == 0

    asyncio.run(main())
