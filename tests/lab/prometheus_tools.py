"""A real Prometheus in the fabric of a lab: started, asked, ended."""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import yaml

from pycni.kernel import netns
from pycni.lab import topology
from pycni.lab.run import Lab
from pycni.lab.scrape import JOB, config

PORT = 9090
Sample = tuple[dict[str, str], float]


class PrometheusError(Exception):
    """It does not answer, or refuses a question."""


class _Connection(http.client.HTTPConnection):
    """HTTP to a port on the loopback of a namespace."""

    def __init__(self, namespace: str) -> None:
        super().__init__("127.0.0.1", PORT, timeout=10)
        self._namespace = namespace

    def connect(self) -> None:
        fd = netns.open_netns(netns.path(self._namespace))
        with open(fd, closefd=True):
            self.sock = netns.run_in(fd, socket.socket)
        self.sock.settimeout(self.timeout)
        self.sock.connect((self.host, self.port))


class Prometheus:
    """One, scraping all agents of a lab every ``interval``, with the rules of a file."""

    def __init__(self, lab: Lab, folder: Path, rules: Path, *, interval: str = "1s") -> None:
        self._namespace = topology.fabric_namespace(lab.spec.name)
        self._log = folder / "prometheus.log"
        path = folder / "prometheus.yml"
        found = config(lab.spec, [node.name for node in lab.nodes()], [str(rules)], interval=interval)
        path.write_text(yaml.safe_dump(found))
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [
                    *netns.exec_prefix(self._namespace),
                    "prometheus",
                    f"--config.file={path}",
                    f"--storage.tsdb.path={folder / 'data'}",
                    f"--web.listen-address=127.0.0.1:{PORT}",
                ],
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def close(self) -> None:
        """End it."""
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def get(self, path: str, **query: str) -> Any:
        """What the API says. Raises PrometheusError, OSError."""
        if self._process.poll() is not None:
            raise PrometheusError(f"prometheus has ended:\n{self._log.read_text()[-3000:]}")
        connection = _Connection(self._namespace)
        try:
            connection.request("GET", f"/api/v1/{path}?{urlencode(query)}")
            body = json.loads(connection.getresponse().read())
        except (
            ConnectionError,
            http.client.HTTPException,
            ValueError,
        ) as error:  # "Service Unavailable" at first
            raise PrometheusError(str(error)) from error
        finally:
            connection.close()
        if body["status"] != "success":
            raise PrometheusError(body.get("error", str(body)))
        return body["data"]

    @property
    def answers(self) -> bool:
        """Whether it does."""
        try:
            return bool(self.get("targets"))
        except PrometheusError:
            if self._process.poll() is not None:
                raise
            return False

    def targets(self) -> dict[str, str]:
        """Health by node."""
        return {item["labels"]["node"]: item["health"] for item in self.get("targets")["activeTargets"]}

    def query(self, expression: str) -> list[Sample]:
        """The series as they are now; NaN left out. Raises PrometheusError for what cannot be evaluated."""
        found = self.get("query", query=expression)
        rows = (
            found["result"] if found["resultType"] == "vector" else [{"metric": {}, "value": found["result"]}]
        )
        values = [(row["metric"], float(row["value"][1])) for row in rows]
        return [item for item in values if item[1] == item[1]]

    def firing(self) -> set[tuple[str, str]]:
        """Alerts with the node they are about."""
        return {
            (item["labels"]["alertname"], item["labels"].get("node", ""))
            for item in self.get("alerts")["alerts"]
            if item["state"] == "firing"
        }

    def rules(self) -> list[dict[str, Any]]:
        """Every rule with its health."""
        return [rule for group in self.get("rules")["groups"] for rule in group["rules"]]


def hurried(rules: Path, folder: Path) -> Path:
    """A copy of the rules whose alerts wait for a second where they wait at all."""
    found = yaml.safe_load(rules.read_text())
    for group in found["groups"]:
        for rule in group["rules"]:
            if "for" in rule:
                rule["for"] = "1s"
    path = folder / rules.name
    path.write_text(yaml.safe_dump(found, sort_keys=False))
    return path


def filled_in(expression: str) -> str:
    """A query of the dashboard with its variables as Grafana sets them."""
    return (
        expression.replace("$job", JOB)
        .replace("$instance", ".*")
        .replace("$__rate_interval", "4s")
        .replace("[2m]", "[10s]")
    )
