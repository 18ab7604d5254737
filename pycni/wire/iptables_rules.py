"""Rules of iptables in the words of nft(8), so that one reader understands both. Pure."""

from __future__ import annotations

import shlex

_OPTIONS = {
    "-i": "iifname", "-o": "oifname", "-p": "meta l4proto", "--dport": "th dport", "--sport": "th sport",
    "--dports": "th dport", "--sports": "th sport", "--ctstate": "ct state", "--state": "ct state",
    "--icmp-type": "icmp type",
}  # fmt: skip
_TARGETS = {"DROP": "drop", "REJECT": "reject", "ACCEPT": "accept", "RETURN": "return", "DNAT": "dnat",
            "SNAT": "snat", "MASQUERADE": "masquerade", "REDIRECT": "redirect", "NFQUEUE": "queue"}  # fmt: skip


def in_nft_words(rule: str, family: str) -> tuple[str, str]:
    """Chain and rule in nft's words of a line of ``iptables -S``; ("", "") when it is none. ``family``: ip or ip6."""
    words = shlex.split(rule)
    if words[:1] != ["-A"] or len(words) < 2:
        return "", ""
    found, wrong, at = list[str](), "", 2
    while at < len(words):
        word, value = words[at], words[at + 1] if at + 1 < len(words) else ""
        at += 2
        if word == "!":
            wrong, at = "!= ", at - 1
        elif word in {"-j", "-g"}:
            jump = f"{'jump' if word == '-j' else 'goto'} {value}"
            found.append(_TARGETS.get(value, jump))
            if value in _TARGETS:
                break
        elif word in {"-s", "-d"}:
            found.append(f"{family} {'saddr' if word == '-s' else 'daddr'} {wrong}{value}")
            wrong = ""
        elif word in _OPTIONS:
            text = value.lower() if "state" in word else value.replace(":", "-").replace("+", "*")
            found.append(f"{_OPTIONS[word]} {wrong}" + (f"{{{text}}}" if "," in text else text))
            wrong = ""
        elif word in {"-m", "--comment"}:
            continue
        else:
            found.append(f"xt {word}")
    return words[1], " ".join(found)
