"""Whose a token is and whether that user may trace: asked of the scripted API, and of the real one where there is one."""

from __future__ import annotations

import asyncio
import json
import socket

import pytest

from pycni.agent.settings import SettingsError
from pycni.agent.settings_file import load
from pycni.errors import ConfigError
from pycni.sources.kube_auth import Access
from pycni.sources.kube_client import KubeClient
from pycni.sources.kube_config import find
from pycni.sources.kube_http import KubeError
from pycni.sources.kube_review import Reviewed, TokenReviewer
from pycni.trace.pick import KINDS
from pycni.tracing.ask import AskError, Door, Secure, context
from tests.k8s.api_server import Reply, serving, status
from tests.k8s.kube_tools import client_of, make_pki
from tests.k8s.real_api import ASSETS, real_api
from tests.k8s.test_agent_services import agent, plane  # noqa: F401  # a fixture

TOKEN = "abc.def.ghi"
USER = {"username": "system:serviceaccount:kube-system:pycni", "uid": "7", "groups": ["system:authenticated"]}


def known(**more):
    return Reply(201, {"status": {"authenticated": True, "user": USER, **more}})


def access(**more):
    return Reply(201, {"status": more})


CASES = {
    "may": (known(), access(allowed=True), Reviewed(USER["username"], True)),
    "may not": (
        known(),
        access(allowed=False, reason="no rule"),
        Reviewed(USER["username"], False, "no rule"),
    ),
    "denied beats allowed": (known(), access(allowed=True, denied=True), Reviewed(USER["username"], False)),
    "nothing said": (known(), access(), Reviewed(USER["username"], False)),
    "not true but like it": (known(), access(allowed="true"), Reviewed(USER["username"], False)),
    "nobody's": (Reply(201, {"status": {"authenticated": False}}), None, Reviewed("")),
    "nobody's, and the token in the reason": (
        Reply(201, {"status": {"error": f"bad {TOKEN}"}}),
        None,
        Reviewed("", reason="bad ..."),
    ),
    "a user without a name": (
        Reply(201, {"status": {"authenticated": True, "user": {"uid": "7"}}}),
        None,
        Reviewed(""),
    ),
    "no status": (Reply(201, {}), None, Reviewed("")),
}


@pytest.mark.parametrize(("token", "may", "expected"), CASES.values(), ids=CASES)
def test_only_a_clear_yes_is_a_yes(token, may, expected):
    async def main():
        async with serving() as server, client_of(server) as client:
            server.script("tokenreviews", token, method="POST")
            if may is not None:
                server.script("subjectaccessreviews", may, method="POST")
            assert await TokenReviewer(client, "/trace").review(TOKEN) == expected
            [asked] = server.asked("tokenreviews", method="POST")
            assert asked.path == "/apis/authentication.k8s.io/v1/tokenreviews"
            assert asked.json["spec"] == {"token": TOKEN}
            reviews = server.asked("subjectaccessreviews", method="POST")
            assert len(reviews) == (may is not None)
            for each in reviews:
                assert each.json["spec"] == {
                    "user": USER["username"],
                    "uid": "7",
                    "groups": USER["groups"],
                    "extra": {},
                    "nonResourceAttributes": {"path": "/trace", "verb": "get"},
                }
                assert TOKEN not in each.body.decode()

    asyncio.run(main())


@pytest.mark.parametrize(("audiences", "user"), [(["pycni"], USER["username"]), (["other"], ""), ([], "")])
def test_a_token_for_somebody_else_is_nobodys(audiences, user):
    async def main():
        async with serving() as server, client_of(server) as client:
            server.script("tokenreviews", known(audiences=audiences), method="POST")
            server.script("subjectaccessreviews", access(allowed=True), method="POST")
            found = await TokenReviewer(client, "/trace", audiences=("pycni",)).review(TOKEN)
            assert found.user == user

    asyncio.run(main())


def test_an_api_that_gives_no_answer_is_an_error_without_the_token():
    async def main():
        async with serving() as server, client_of(server) as client:
            server.script("tokenreviews", Reply(403, status(403, "Forbidden", "no rights")), method="POST")
            with pytest.raises(KubeError, match="no rights") as caught:
                await TokenReviewer(client, "/trace").review(TOKEN)
            assert TOKEN not in str(caught.value)

    asyncio.run(main())


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def trace_flags(folder, port):
    return (
        f"--trace-listen=127.0.0.1:{port}",
        "--trace-auth=token",
        f"--trace-tls-cert={folder}/server.crt",
        f"--trace-tls-key={folder}/server.key",
        f"--trace-tls-ca={folder}/ca.crt",
    )


@pytest.mark.usefixtures("plane")
def test_an_agent_lets_in_whom_the_cluster_lets_and_asks_it_once(tmp_path):
    make_pki(tmp_path)
    port = free_port()

    async def main():
        async with serving() as server:
            server.script("tokenreviews", known(), Reply(201, {"status": {}}), method="POST")
            server.script("subjectaccessreviews", access(allowed=True), method="POST")
            flags = (f"--kube-api-url={server.url}", *trace_flags(tmp_path, port))
            async with agent(tmp_path, *flags):
                secure = Secure(context(f"{tmp_path}/ca.crt"), port)

                async def ask(token):
                    door = Door("n1", secure.dial(["127.0.0.1"]), token)
                    return await asyncio.to_thread(door.get, "/trace/objects?end=a")

                for _ in range(3):
                    assert set(json.loads(await ask(TOKEN))) == set(KINDS)
                assert len(server.asked("tokenreviews", method="POST")) == 1
                for token, code in (("another", 401), ("", 401)):
                    with pytest.raises(AskError) as caught:
                        await ask(token)
                    assert caught.value.status == code

    asyncio.run(main())


@pytest.mark.usefixtures("plane")
def test_a_listener_that_cannot_be_had_is_a_wrong_setting(tmp_path):
    make_pki(tmp_path)

    async def main(port):
        async with serving() as server:
            flags = (f"--kube-api-url={server.url}", *trace_flags(tmp_path, port))
            with pytest.raises(ConfigError, match="trace-listen"):
                async with agent(tmp_path, *flags):
                    pass

    with socket.create_server(("127.0.0.1", 0)) as taken:
        asyncio.run(main(taken.getsockname()[1]))


@pytest.mark.parametrize(
    "words",
    [
        "--trace-listen=9475",
        "--trace-listen=host:9475",
        "--trace-listen=10.0.0.1:0",
        "--trace-listen=10.0.0.1:9475",
        "--trace-listen=[::]:9475 --trace-tls-cert=a --trace-tls-key=b",
        "--trace-auth=password",
    ],
)
def test_settings_that_cannot_be_are_refused(words):
    with pytest.raises(SettingsError, match="trace-"):
        load(words.split(), {}, "n1")


if ASSETS:

    def test_the_real_api_judges_tokens_and_users_as_the_scripted_one(tmp_path):
        """A ServiceAccount's token, before and after it may get /trace."""

        async def main(path):
            client = KubeClient(Access(find(path)))
            try:
                account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "tracer"}}
                await client.request("POST", "/api/v1/namespaces/kube-system/serviceaccounts", account)
                asked = await client.request(
                    "POST",
                    "/api/v1/namespaces/kube-system/serviceaccounts/tracer/token",
                    {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}},
                )
                token = json.loads(asked)["status"]["token"]
                reviewer = TokenReviewer(client, "/trace")
                user = "system:serviceaccount:kube-system:tracer"
                assert (await reviewer.review(token))[:2] == (user, False)
                assert (await reviewer.review(token[:-4]))[0] == ""
                group = "rbac.authorization.k8s.io"
                for kind, fields in (
                    ("ClusterRole", {"rules": [{"nonResourceURLs": ["/trace"], "verbs": ["get"]}]}),
                    (
                        "ClusterRoleBinding",
                        {
                            "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": "tracer"},
                            "subjects": [
                                {"kind": "ServiceAccount", "name": "tracer", "namespace": "kube-system"}
                            ],
                        },
                    ),
                ):
                    body = {
                        "apiVersion": f"{group}/v1",
                        "kind": kind,
                        "metadata": {"name": "tracer"},
                        **fields,
                    }
                    await client.request("POST", f"/apis/{group}/v1/{kind.lower()}s", body)
                for _ in range(200):
                    if (await reviewer.review(token)).allowed:
                        break
                    await asyncio.sleep(0.1)
                assert (await reviewer.review(token))[:2] == (user, True)
            finally:
                await client.close()

        with real_api(tmp_path) as path:
            asyncio.run(main(path))
