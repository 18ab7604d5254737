"""JSON as values of a type, from any thread. Pure.

msgspec 0.22 works a type out when it is first needed, in code that lets others run; a second thread that gets there
meanwhile, also for another type with parts in common, ends the process. So types are worked out one at a time here, and
decoders are kept.
"""

from __future__ import annotations

import threading
from typing import Any, TypeVar, cast

import msgspec

T = TypeVar("T")
_lock = threading.Lock()
_decoders: dict[Any, msgspec.json.Decoder[Any]] = {}


def decode(raw: bytes | str, kind: type[T]) -> T:
    """The value. Raises msgspec.DecodeError, and its subclass ValidationError naming the field."""
    decoder = _decoders.get(kind)
    if decoder is None:
        with _lock:
            decoder = _decoders.setdefault(kind, msgspec.json.Decoder(kind))
    return cast("T", decoder.decode(raw))
