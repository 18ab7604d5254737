"""Taking secrets out of texts that are handed on: by value, and by the words that announce one. Pure.

Life: what is known to be secret on this node is added (``add``), every text is searched for what announces itself as a
secret (``learn``), then each is cleaned of all of it (``clean``): a password found in one file is removed from all.
Rather too much is removed than too little.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from urllib.parse import quote

REMOVED = "(removed)"
SHORTEST = 3
"""Characters of a value known to be secret that is looked for everywhere."""
SHORTEST_LEARNT = 6
"""The same of one that some text called a secret; a shorter one goes where it was called so."""
_HIDDEN = frozenset({"(removed)", "(hidden)", "(none)", "null", "none", "true", "false", "{", "[", "|", ""})
_NAME = (
    r"(?:password|passwd|passphrase|psk|pre-?shared[-_ ]?key|private[-_ ]?key|secret|token|client[-_]key[-_]data"
    r"|api[-_]?key|credential)s?"
)
_PATTERNS = (
    # "PSK": "value", password = value, --etcd-password=value, PYCNID_ETCD_PASSWORD=value, private key: value
    re.compile(rf"""{_NAME}\\?["']?\s*[:=]\s*\\?(?P<quote>["']?)(?P<secret>[^\s"',;}}\\]+)""", re.IGNORECASE),
    # the same in quotation marks, where the value may hold anything
    re.compile(
        rf"""{_NAME}["']?\s*[:=]?\s*(?P<quote>["'])(?P<secret>(?:\\.|(?!(?P=quote)).)+)""",
        re.IGNORECASE,
    ),
    # lists: passwords: [a, b]
    re.compile(rf"""{_NAME}["']?\s*[:=]\s*\[(?P<secret>[^\]]+)\]""", re.IGNORECASE),
    # --etcd-password value
    re.compile(rf"""--[\w-]*{_NAME}\s+(?P<secret>[^\s"']+)""", re.IGNORECASE),
    re.compile(r"\b(?:Bearer|Basic)\s+(?P<secret>[\w.~+/=-]{8,})", re.IGNORECASE),
    re.compile(r"://[^/\s:@]+:(?P<secret>[^/\s@]+)@"),
)
_PEM = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL)


class Secrets:
    """What must not be handed on."""

    def __init__(self) -> None:
        self._values: set[str] = set()

    def add(self, value: str, *, shortest: int = SHORTEST) -> None:
        """A value, and how else it may be written; with what it says in base64 or hex, if it does."""
        value = value.strip()
        if value.lower() in _HIDDEN or len(value) < shortest:
            return
        for text in (value, *_meant(value)):
            raw = text.encode("utf-8", "surrogateescape")
            self._values.update(_written(raw))
            if len(text) >= shortest:
                self._values.update(
                    {text, json.dumps(text)[1:-1], quote(text, safe="", errors="surrogateescape")}
                )

    def add_key(self, raw: bytes) -> None:
        """A binary key."""
        if raw:
            self._values.update(_written(raw))

    def learn(self, text: str) -> None:
        """Everything a text calls a secret."""
        for pattern in _PATTERNS:
            for match in pattern.finditer(text):
                self.add(match["secret"], shortest=SHORTEST_LEARNT)

    def clean(self, text: str) -> str:
        """The text without any."""
        text = _PEM.sub(REMOVED, text)
        for value in sorted(self._values, key=len, reverse=True):
            text = text.replace(value, REMOVED)
        for pattern in _PATTERNS:
            text = pattern.sub(_emptied, text)
        return text


def _emptied(match: re.Match[str]) -> str:
    secret = match["secret"]
    if secret.lower() in _HIDDEN or secret.startswith(REMOVED):
        return match[0]
    begin = match.start("secret") - match.start()
    return match[0][:begin] + REMOVED + match[0][begin + len(secret) :]


def _written(raw: bytes) -> set[str]:
    """Bytes as keys are written."""
    encoded = base64.b64encode(raw).decode()
    found = {encoded, base64.urlsafe_b64encode(raw).decode(), raw.hex(), raw.hex().upper(), raw.hex(":")}
    return {text for text in found if len(text) >= SHORTEST_LEARNT}


def _meant(value: str) -> list[str]:
    """What base64 or hex stand for, when it is a text; of keys, which are none, only the forms count."""
    found = []
    for decode in (lambda text: base64.b64decode(text, validate=True), bytes.fromhex):
        try:
            raw = decode(value)
        except (ValueError, binascii.Error):
            continue
        if len(raw) >= SHORTEST:
            found.append(raw.decode("utf-8", "surrogateescape"))
    return found
