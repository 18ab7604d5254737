"""The one offload we look at: whether a device leaves checksums of IP packets to what is below it.

Source: include/uapi/linux/ethtool.h; SIOCETHTOOL with ETHTOOL_GSTRINGS, ETHTOOL_GFEATURES and ETHTOOL_SFEATURES.
"""

from __future__ import annotations

import array
import errno
import fcntl
import socket
import struct

from pycni.errors import KernelError

FEATURE = "tx-checksum-ip-generic"

_SIOCETHTOOL = 0x8946
_GSTRINGS, _GSSET_INFO, _GFEATURES, _SFEATURES = 0x1B, 0x37, 0x3A, 0x3B
_SS_FEATURES = 4
_STRING_BYTES = 32
_NAME_BYTES = 16


def tx_checksum(device: str) -> bool:
    """Whether ``tx-checksum-ip-generic`` is on. Raises KernelError (ENODEV; EOPNOTSUPP: no such feature)."""
    bit, count = _feature(device)
    blocks = (count + 31) // 32
    reply = _ioctl(device, struct.pack("=II", _GFEATURES, blocks) + bytes(16 * blocks))
    _, _, active, _ = struct.unpack_from("=IIII", reply, 8 + 16 * (bit // 32))
    return bool(active >> (bit % 32) & 1)


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


def _feature(device: str) -> tuple[int, int]:
    """Bit of the feature and the number of features."""
    reply = _ioctl(device, struct.pack("=IIQI", _GSSET_INFO, 0, 1 << _SS_FEATURES, 0))
    (count,) = struct.unpack_from("=I", reply, 16)
    names = _ioctl(device, struct.pack("=III", _GSTRINGS, _SS_FEATURES, count) + bytes(_STRING_BYTES * count))
    for bit in range(count):
        start = 12 + _STRING_BYTES * bit
        if names[start : start + _STRING_BYTES].rstrip(b"\0").decode() == FEATURE:
            return bit, count
    raise KernelError(errno.EOPNOTSUPP, f"find feature {FEATURE}", device)


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
