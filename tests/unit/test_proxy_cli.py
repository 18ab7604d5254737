"""``pycnictl services`` and ``cleanup``: what people see, what programs get, what is refused."""

from __future__ import annotations

import contextlib
import io

import msgspec
import pytest

from pycni import cli
from pycni.agent.httpd import Response
from pycni_proxy import cli_cleanup, cli_services, planes
from pycni_proxy.status import EndpointStatus, FrontendStatus, ServiceStatus, Status
from tests.unit.control_socket import serving
from tests.unit.proxy_fakes import FakePlane, refused


def frontend(**fields):
    given = {
        "kind": "ClusterIP", "address": "10.96.0.10", "protocol": "TCP", "port": 80, "port_name": "", "data_plane": "ipvs",
        "scheduler": "lc", "affinity_s": 0, "local_only": False, "verdict": "", "endpoints": (), "connections": 5,
        "packets_in": 1, "packets_out": 1, "bytes_in": 2048, "bytes_out": 10,
    }  # fmt: skip
    return FrontendStatus(**{**given, **fields})


def status(*frontends, problems=(), **fields):
    service = ServiceStatus(
        namespace="shop", name="web", frontends=frontends, problems=problems, programmed=1.0, latency_s=0.0042
    )
    given = {
        "node": "n1",
        "data_planes": ("ipvs",),
        "notes": (),
        "trouble": "",
        "others": (),
        "services": (service,),
    }
    return Status(**{**given, **fields})


def shown(found):
    with contextlib.redirect_stdout(io.StringIO()) as out:
        cli_services.show(found)
    return out.getvalue()


END = EndpointStatus("10.244.1.5", 8080, local=True, weight=1, active=2, inside_only=False)
LINES = [
    ("counters, latency", status(frontend()), "shop/web  ClusterIP  TCP 10.96.0.10:80  ipvs lc     5      2.0 KiB/10 B  4.2 ms"),
    ("not counted", status(frontend(connections=-1, bytes_in=-1, bytes_out=-1)), "shop/web  ClusterIP  TCP 10.96.0.10:80  ipvs lc     -      -       4.2 ms"),
    ("endpoint", status(frontend(endpoints=(END,))), "-> 10.244.1.5:8080  weight 1  2 open  here"),
    ("draining endpoint", status(frontend(endpoints=(msgspec.structs.replace(END, weight=0, local=False),))), "-> 10.244.1.5:8080  draining  2 open"),
    ("only for pods", status(frontend(endpoints=(msgspec.structs.replace(END, inside_only=True),), verdict="drop")), "drops new connections from outside"),
    ("nobody", status(frontend(verdict="reject")), "  rejects new connections\n"),
    ("IPv6", status(frontend(address="fd00::1")), "TCP [fd00::1]:80"),
    ("node port", status(frontend(kind="NodePort", address="", local_only=True)), "NodePort Local  TCP *:80"),
    ("affinity", status(frontend(affinity_s=60)), "ipvs lc affinity 60 s"),
    ("not served", status(frontend(data_plane="")), "not served lc"),
    ("problem", status(problems=("x" * 300,)), f"shop/web: {'x' * 300}\n"),
    ("trouble", status(trouble="passes failed"), "not as programmed: passes failed\n"),
    ("note", status(notes=("ipvs cannot run here",)), "note: ipvs cannot run here\n"),
    ("others", status(others=("kube-proxy is running",)), "also on this node: kube-proxy is running\n"),
]  # fmt: skip


@pytest.mark.parametrize(("found", "text"), [c[1:] for c in LINES], ids=[c[0] for c in LINES])
def test_people_see(found, text):
    out = shown(found)
    assert text in out
    assert "\033" not in out
    assert not any(line.endswith(" ") for line in out.split("\n"))


async def services(query):
    found = status(frontend()) if query in ("", "name=web", "namespace=shop") else status(services=())
    return Response(200, "application/json", msgspec.json.encode(found).decode())


async def ready(_query):
    return Response(503, body="not ready\n")


def test_programs_get_one_object_and_a_missing_service_is_an_exit_code(tmp_path, capsys):
    path = tmp_path / "a.sock"
    with serving(path, {"/services": services}):
        assert cli.main(["services", "web", "--json", "--socket", str(path)]) == 0
        out = capsys.readouterr().out
        assert msgspec.json.decode(out, type=Status) == status(frontend())
        assert out.count("\n") == 1
        assert cli.main(["services", "-n", "shop", "--socket", str(path)]) == 0
        assert cli.main(["services", "nosuch", "--socket", str(path)]) == 1


def test_watching_prints_again_until_interrupted(tmp_path, capsys, monkeypatch):
    naps = []

    def nap(seconds):
        naps.append(seconds)
        if len(naps) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(cli_services.time, "sleep", nap)
    path = tmp_path / "a.sock"
    with serving(path, {"/services": services}):
        assert cli.main(["services", "-w", "--json", "--socket", str(path)]) == 130
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_no_agent_is_one_line(tmp_path, capsys):
    assert cli.main(["services", "--socket", str(tmp_path / "none.sock")]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_clean_up_removes_every_plane_and_reports_what_fails(tmp_path, capsys, monkeypatch):
    made = {name: FakePlane(name, []) for name in planes.FACTORIES}
    made["nftables"].kernel["table"] = 1
    made["ipvs"].leftover_error = refused("stuck")
    monkeypatch.setattr(
        planes, "leftovers", lambda keep, load=made.__getitem__, do=planes.leftovers: do(keep, load)
    )
    args = cli.parse(["cleanup", "--socket", str(tmp_path / "none.sock")])
    assert cli_cleanup.run(args) == 1
    out = capsys.readouterr()
    assert out.out == "removed: nftables: table\n"
    assert "stuck" in out.err


@pytest.mark.parametrize(
    "routes", [{"/services": services}, {"/readyz": ready}], ids=["answers", "is not ready"]
)
def test_clean_up_refuses_beside_an_agent_even_one_that_is_not_ready(tmp_path, capsys, monkeypatch, routes):
    monkeypatch.setattr(planes, "leftovers", lambda _keep: pytest.fail("touched"))
    path = tmp_path / "a.sock"
    with serving(path, routes):
        assert cli.main(["cleanup", "--socket", str(path)]) == 1
    assert "stop it first" in capsys.readouterr().err
