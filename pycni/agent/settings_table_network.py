"""Settings of the pod network: etcd, the underlay, leases, masquerading. Rows of ``settings.TABLE``."""

from __future__ import annotations

from pycni.agent import settings_kinds as kinds
from pycni.agent.settings_row import Setting

ROWS: tuple[Setting, ...] = (
    Setting(
        "etcd-endpoints",
        kinds.ENDPOINTS,
        ("http://127.0.0.1:2379",),
        "Members of the etcd cluster, tried in turn.",
        flannel=True,
    ),
    Setting(
        "etcd-prefix",
        kinds.TEXT,
        "/coreos.com/network",
        "Where the network's configuration and leases are in etcd.",
        flannel=True,
    ),
    Setting(
        "etcd-cafile",
        kinds.PATH,
        "",
        "Certificate authority that etcd's certificate is checked against; without it the system's.",
        flannel=True,
    ),
    Setting("etcd-certfile", kinds.PATH, "", "Client certificate for etcd; with etcd-keyfile.", flannel=True),
    Setting(
        "etcd-keyfile", kinds.PATH, "", "Key of the client certificate; with etcd-certfile.", flannel=True
    ),
    Setting("etcd-username", kinds.TEXT, "", "User name at etcd; with a password.", flannel=True),
    Setting(
        "etcd-password",
        kinds.SECRET,
        "",
        "Password at etcd. As a flag it shows in the process list: prefer the variable or etcd-password-file.",
        flannel=True,
        secret=True,
    ),
    Setting(
        "etcd-password-file",
        kinds.PATH,
        "",
        "File whose first line is the password at etcd.",
    ),
    Setting(
        "etcd-lease-ttl",
        kinds.integer(2, 7 * 86400),
        86400,
        "Lifetime of this node's lease. Flannel's is fixed at a day.",
        unit="s",
        hidden=True,
    ),
    Setting(
        "iface",
        kinds.NAMES,
        (),
        "External interface, by name or by one of its addresses; the first that exists is used. "
        "Without iface, iface-regex and iface-can-reach: the interface of the default route.",
        flannel=True,
    ),
    Setting(
        "iface-regex",
        kinds.REGEXES,
        (),
        "External interface by a regular expression searched in its addresses, then in its name; after iface.",
        flannel=True,
    ),
    Setting(
        "iface-can-reach",
        kinds.ADDRESS,
        None,
        "External interface: the one by which the kernel routes to this address.",
        flannel=True,
    ),
    Setting(
        "public-ip",
        kinds.IPV4,
        None,
        "IPv4 address other nodes reach this one at.",
        flannel=True,
        shown_default="the interface's",
    ),
    Setting(
        "public-ipv6",
        kinds.IPV6,
        None,
        "IPv6 address other nodes reach this one at.",
        flannel=True,
        shown_default="the interface's",
    ),
    Setting(
        "subnet-file",
        kinds.PATH,
        "/run/flannel/subnet.env",
        "File the node's subnet and MTU are written to, in flannel's format.",
        flannel=True,
    ),
    Setting(
        "subnet-lease-renew-margin",
        kinds.integer(1, 1439),
        60,
        "How long before its end the lease is renewed.",
        unit="min",
        flannel=True,
    ),
    Setting(
        "ip-masq", kinds.BOOLEAN, False, "Masquerade traffic that leaves the cluster network.", flannel=True
    ),
    Setting(
        "ip-masq-fully-random-disable",
        kinds.BOOLEAN,
        False,
        "Do not pick source ports at random when masquerading.",
        flannel=True,
    ),
    Setting(
        "ip-masq-exclude",
        kinds.NETWORKS,
        (),
        "Destinations outside the cluster network that are not masqueraded either.",
    ),
    Setting(
        "follow-backend",
        kinds.BOOLEAN,
        True,
        "Whether another Backend.Type in the net-conf is taken at once, without a lost packet where both kinds can "
        "live together; off: at the next start, so that a rolling restart changes node by node.",
    ),
    Setting(
        "wireguard-key-period",
        kinds.integer(0, 24 * 3650),
        0,
        "Age at which this node changes its WireGuard key, or up to a tenth later, so that nodes do not all do it at "
        "once; 0: never by itself.",
        unit="h",
        shown_default="never",
    ),
    Setting(
        "vtep-probe-port",
        kinds.integer(0, 65535),
        8473,
        "UDP port at the base address of each node's subnet, where agents ask each other through the pod network, to "
        "know that it works and to find a broken checksum offload; 0: off.",
    ),
)
