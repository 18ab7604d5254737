"""Settings of traces that other nodes may make over this one. Rows of ``settings.TABLE``."""

from __future__ import annotations

from pycni.agent import settings_kinds as kinds
from pycni.agent.settings_row import Setting

ROWS: tuple[Setting, ...] = (
    Setting(
        "trace-listen",
        kinds.LISTEN,
        "",
        "Where agents and pycnictl of other nodes may ask this agent for traces, by TLS; usually port 9475. All agents "
        "of a cluster have the same port.",
        shown_default="off",
    ),
    Setting(
        "trace-auth",
        kinds.subset("cert", "token"),
        ("cert",),
        "How callers of trace-listen prove who they are: cert: a client certificate signed by trace-tls-ca; token: a "
        "bearer token whose user the Kubernetes API allows to get the path /trace.",
    ),
    Setting(
        "trace-tls-cert",
        kinds.PATH,
        "",
        "Certificate for trace-listen; read again when it changes.",
    ),
    Setting("trace-tls-key", kinds.PATH, "", "Key of trace-tls-cert."),
    Setting(
        "trace-tls-ca",
        kinds.PATH,
        "",
        "Certificate authority of the agents, by which they know each other, and of clients with trace-auth cert.",
    ),
    Setting(
        "trace-allowed-names",
        kinds.NAMES,
        (),
        "Common or DNS names that client certificates may have; without it all that trace-tls-ca has signed.",
    ),
    Setting(
        "trace-server-name",
        kinds.TEXT,
        "",
        "DNS name that is in all agents' certificates; without it each has the addresses it is reached at.",
    ),
)
