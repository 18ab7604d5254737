"""Settings of network policies. Rows of ``settings.TABLE``; docs/policy.md says what is enforced."""

from __future__ import annotations

from pycni.agent import settings_kinds as kinds
from pycni.agent.settings_row import Setting

ROWS: tuple[Setting, ...] = (
    Setting(
        "policy",
        kinds.choice("nftables", "ebpf"),
        "nftables",
        "Data plane of network policies. nftables judges in either case; ebpf: programs at pods judge before it what "
        "they can, where bcc and the kernel allow.",
    ),
    Setting(
        "policy-xdp",
        kinds.choice("off", "auto", "native", "generic"),
        "off",
        "Drop what policies certainly deny as it comes in by the external interface, before the stack. auto: native "
        "where the driver can, else generic.",
    ),
    Setting(
        "policy-spoof-check",
        kinds.BOOLEAN,
        True,
        "Drop what a pod sends with another MAC or IP address than its own.",
    ),
    Setting(
        "policy-net-admin",
        kinds.choice("allow", "refuse"),
        "allow",
        "Pods on the underlay (macvlan, ipvlan) that may change their own network, as CAP_NET_ADMIN lets them: their "
        "policies are enforced inside them, so they can undo them. refuse: they get no network.",
    ),
    Setting(
        "policy-sync-period",
        kinds.integer(5, 86400),
        300,
        "How often the kernel's policies are read back and compared with what they should be.",
        unit="s",
    ),
    Setting(
        "policy-metrics-limit",
        kinds.integer(0, 1000000),
        200,
        "Denied packets are metrics per policy for at most so many policies, the first that deny any; 0: never.",
    ),
)
