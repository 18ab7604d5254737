"""The project's own errors: few, each carrying what a caller decides on.

An error names the object, the field and the value it is about, so that one log line is enough to act.
Causes are chained (``raise ... from exc``). Nothing here does I/O.
"""

from __future__ import annotations

import errno as _errno

TRANSIENT_ERRNOS = frozenset(
    {_errno.EBUSY, _errno.EAGAIN, _errno.EINTR, _errno.ENOMEM, _errno.ENOBUFS, _errno.ETIMEDOUT}
)


class PycniError(Exception):
    """Base of every error this project raises on purpose."""

    transient = False
    """True when trying the same thing again later can succeed."""


class ConfigError(PycniError):
    """A setting, key or record from outside is wrong.

    ``obj`` names the thing ("net-conf", "flag", "lease 10.1.2.0-24"), ``field`` the key in it, ``value``
    what was found (shown with repr, cut at 200 characters), ``reason`` what is expected.
    """

    def __init__(self, obj: str, field: str, value: object, reason: str) -> None:
        self.obj = obj
        self.field = field
        self.value = value
        self.reason = reason
        shown = repr(value)
        if len(shown) > 200:
            shown = shown[:200] + "..."
        super().__init__(f"{obj}: {field}={shown}: {reason}")


class KernelError(PycniError):
    """The kernel refused an operation.

    ``errno`` is positive, ``operation`` a verb with its object kind ("add route"), ``obj`` the object in the
    notation of ip(8), ``detail`` the extended-ack text when the kernel sent one.
    """

    def __init__(self, errno: int, operation: str, obj: str = "", detail: str = "") -> None:
        self.errno = errno
        self.operation = operation
        self.obj = obj
        self.detail = detail
        name = _errno.errorcode.get(errno, str(errno))
        text = f"{operation} {obj}".strip() + f": {name}"
        if detail:
            text += f" ({detail})"
        super().__init__(text)

    @property
    def transient(self) -> bool:  # type: ignore[override]
        """Whether the same request may succeed later."""
        return self.errno in TRANSIENT_ERRNOS


class StoreError(PycniError):
    """etcd or another store cannot be used now. ``transient`` tells whether waiting helps."""

    def __init__(self, message: str, *, transient: bool = True) -> None:
        self.transient = transient
        super().__init__(message)


class IpamError(PycniError):
    """No address can be handed out; ``exhausted`` when the reason is that all are taken."""

    def __init__(self, message: str, *, exhausted: bool = False) -> None:
        self.exhausted = exhausted
        super().__init__(message)


class CniError(PycniError):
    """An error with a code of the CNI specification 1.1.0, section "Error"."""

    INCOMPATIBLE_VERSION = 1
    UNSUPPORTED_FIELD = 2
    UNKNOWN_CONTAINER = 3
    BAD_ENVIRONMENT = 4
    IO_FAILURE = 5
    DECODE_FAILURE = 6
    INVALID_NETWORK_CONFIG = 7
    OWN_NETNS = 8
    TRY_AGAIN_LATER = 11
    UNAVAILABLE = 50
    LIMITED_CONNECTIVITY = 51
    INTERNAL = 999

    def __init__(self, code: int, msg: str, details: str = "") -> None:
        self.code = code
        self.msg = msg
        self.details = details
        super().__init__(f"{msg}: {details}" if details else msg)
