"""Rules of others in tables that are everybody's: ours beside them are not theirs."""

from __future__ import annotations

from pycni.kernel import spacefirewall

SAVED = """\
-P INPUT ACCEPT
-P FORWARD DROP
-N PYCNI-INPUT
-N THEIRS
-A INPUT -j PYCNI-INPUT
-A INPUT -p tcp -m tcp --dport 23 -j DROP
-A FORWARD -j THEIRS
-A PYCNI-INPUT -m mark --mark 0x4000/0x4000 -j REJECT
-A THEIRS -s 192.0.2.1/32 -j DROP
"""


def test_our_chains_and_what_leads_to_them_are_left_out() -> None:
    hooks = {item.chain: item for item in spacefirewall._legacy_hooks("ip", "filter", SAVED.splitlines())}
    assert set(hooks) == {"INPUT", "FORWARD"}
    assert hooks["INPUT"].rules == ("meta l4proto tcp th dport 23 drop",)
    assert hooks["INPUT"].verdicts == (
        "-A INPUT -p tcp -m tcp --dport 23 -j DROP",
        "-A THEIRS -s 192.0.2.1/32 -j DROP",
    )
    assert hooks["FORWARD"].policy == "drop"
    assert hooks["FORWARD"].rules == ("jump THEIRS",)
    assert set(hooks["FORWARD"].chains) == {"THEIRS"}


def test_alone_they_are_nobody_elses() -> None:
    ours = [line for line in SAVED.splitlines() if "PYCNI" in line or line == "-P INPUT ACCEPT"]
    hooks = list(spacefirewall._legacy_hooks("ip", "filter", ours))
    assert [(item.rules, item.verdicts, item.chains) for item in hooks] == [((), (), {})]
