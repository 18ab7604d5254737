"""Offloads of devices: the one we set (whether checksums of IP packets are left to what is below), others to look at.

Source: include/uapi/linux/ethtool.h; SIOCETHTOOL with ETHTOOL_GSTRINGS, ETHTOOL_GFEATURES, ETHTOOL_SFEATURES
and ETHTOOL_GDRVINFO.
"""

from __future__ import annotations

import array
import errno
import fcntl
import socket
import struct
from collections.abc import Callable, Iterable

from pycni.errors import KernelError

FEATURE = "tx-checksum-ip-generic"

_SIOCETHTOOL = 0x8946
_GDRVINFO, _DRVINFO_BYTES = 0x03, 196
_GSTRINGS, _GSSET_INFO, _GFEATURES, _SFEATURES = 0x1B, 0x37, 0x3A, 0x3B
_SS_FEATURES = 4
_STRING_BYTES = 32
_NAME_BYTES = 16


def tx_checksum(device: str) -> bool:
    """Whether ``tx-checksum-ip-generic`` is on. Raises KernelError (ENODEV; EOPNOTSUPP: no such feature)."""
    bit, count = _feature(device)
    return _state(device, count)(bit)[1]


def features(device: str, names: Iterable[str]) -> dict[str, bool]:
    """Which of these features are on; those the device cannot have are left out. Raises KernelError (ENODEV)."""
    bits = _names(device)
    state = _state(device, len(bits))
    found = {name: state(bits.index(name)) for name in names if name in bits}
    return {name: active for name, (available, active) in found.items() if available or active}


def driver(device: str) -> str:
    """Name of the device's driver; "" when it has none to tell. Raises KernelError (ENODEV)."""
    try:
        reply = _ioctl(device, struct.pack("=I", _GDRVINFO) + bytes(_DRVINFO_BYTES - 4))
    except KernelError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        return ""
    return reply[4 : 4 + _STRING_BYTES].split(b"\0", 1)[0].decode(errors="replace")


def set_tx_checksum(device: str, *, on: bool) -> bool:
    """Switch ``tx-checksum-ip-generic``; returns whether it was changed. Raises KernelError."""
    if tx_checksum(device) is on:
        return False
    bit, count = _feature(device)
    words = bytearray(8 * ((count + 31) // 32))
    mask = 1 << (bit % 32)
    struct.pack_into("=II", words, 8 * (bit // 32), mask, mask if on else 0)
    _ioctl(device, struct.pack("=II", _SFEATURES, len(words) // 8) + bytes(words))
    if tx_checksum(device) is not on:
        raise KernelError(errno.EOPNOTSUPP, f"set {FEATURE}", device, "the device keeps it")
    return True


def _state(device: str, count: int) -> Callable[[int], tuple[bool, bool]]:
    """Whether the feature of a bit can be switched, and whether it is on."""
    blocks = (count + 31) // 32
    reply = _ioctl(device, struct.pack("=II", _GFEATURES, blocks) + bytes(16 * blocks))

    def state(bit: int) -> tuple[bool, bool]:
        available, _, active, _ = struct.unpack_from("=IIII", reply, 8 + 16 * (bit // 32))
        return bool(available >> (bit % 32) & 1), bool(active >> (bit % 32) & 1)

    return state


def _feature(device: str) -> tuple[int, int]:
    """Bit of the feature and the number of features."""
    names = _names(device)
    if FEATURE not in names:
        raise KernelError(errno.EOPNOTSUPP, f"find feature {FEATURE}", device)
    return names.index(FEATURE), len(names)


def _names(device: str) -> list[str]:
    """All features, by bit."""
    reply = _ioctl(device, struct.pack("=IIQI", _GSSET_INFO, 0, 1 << _SS_FEATURES, 0))
    (count,) = struct.unpack_from("=I", reply, 16)
    names = _ioctl(device, struct.pack("=III", _GSTRINGS, _SS_FEATURES, count) + bytes(_STRING_BYTES * count))
    starts = range(12, 12 + _STRING_BYTES * count, _STRING_BYTES)
    return [names[at : at + _STRING_BYTES].split(b"\0", 1)[0].decode() for at in starts]


def _ioctl(device: str, command: bytes) -> bytes:
    if len(device.encode()) >= _NAME_BYTES:  # cut, it would be another device's name
        raise KernelError(errno.EINVAL, "ethtool", device, "no such long device names")
    buffer = array.array("B", command)
    address, _ = buffer.buffer_info()
    request = struct.pack("16sP", device.encode(), address)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        try:
            fcntl.ioctl(sock, _SIOCETHTOOL, request)
        except OSError as exc:
            raise KernelError(exc.errno or 0, "ethtool", device) from exc
    return buffer.tobytes()
