"""Settings of where services, endpoints and nodes are read from. Rows of ``settings.TABLE``."""

from __future__ import annotations

from pycni.agent import settings_kinds as kinds
from pycni.agent.settings_row import Setting

ROWS: tuple[Setting, ...] = (
    Setting(
        "manifest-dir",
        kinds.ABSOLUTE_PATH,
        "",
        "Folder of Kubernetes manifests (YAML, JSON) that is watched for Services, EndpointSlices, Nodes, Pods and "
        "Namespaces; in place of the Kubernetes API.",
    ),
    Setting(
        "kubeconfig",
        kinds.PATH,
        "",
        "File with the address of the Kubernetes API and the credentials for it; without it and kube-api-url those of "
        "the pod this process runs in.",
        flannel=True,
        aliases=("kubeconfig-file",),
    ),
    Setting(
        "kube-api-url",
        kinds.URL,
        "",
        "Kubernetes API server; overrides the one of kubeconfig.",
        flannel=True,
        aliases=("master",),
    ),
    Setting(
        "kube-subnet-mgr",
        kinds.BOOLEAN,
        False,
        "Take this node's subnet and all others' from Node objects (spec.podCIDRs and flannel's annotations) and not "
        "from etcd.",
        flannel=True,
    ),
    Setting(
        "kube-annotation-prefix",
        kinds.TEXT,
        "flannel.alpha.coreos.com",
        "Prefix of the node annotations with kube-subnet-mgr.",
        flannel=True,
    ),
    Setting(
        "set-node-network-unavailable",
        kinds.BOOLEAN,
        True,
        "With kube-subnet-mgr: set this node's condition NodeNetworkUnavailable to False once it has its subnet.",
        flannel=True,
    ),
    Setting(
        "net-config-path",
        kinds.PATH,
        "/etc/kube-flannel/net-conf.json",
        "File with the network's configuration when kube-subnet-mgr is on.",
        flannel=True,
    ),
)
