"""Lease records as flannel keeps them under ``<prefix>/subnets/``, both ways and byte for byte.

Key: ``10.5.34.0-24``, dual-stack ``10.5.34.0-24&fd00:1::-64``, IPv6 only ``0.0.0.0-0&fd00:1::-64``.
Value: ``{"PublicIP":"192.0.2.1","PublicIPv6":null,"BackendType":"vxlan","BackendData":{...},"BackendV6Data":{...}}``
in this order; an absent PublicIP is "0.0.0.0", an absent PublicIPv6 null, the other three are left out when empty.
``"Backends":[{"BackendType":...,"BackendData":...,"BackendV6Data":...}]`` is ours and only there while the network
changes its backend; flannel passes over it.

Records come from other programs and from people (static reservations): whatever does not decode raises one
ConfigError, which its reader logs; it is never repaired or deleted. A key has one spelling only, or one subnet
could have two records.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Any

import msgspec

from pycni.errors import ConfigError
from pycni.model.family import Address
from pycni.model.lease import Lease, LeaseAttrs, Offer, lease_key
from pycni.wire.gojson import Fields, is_number, read_object, shorten

# Shape only; the numbers are judged by ipaddress. No anchors needed: always used with fullmatch.
_KEY = re.compile(r"([0-9.]{7,15})-([0-9]{1,2})(?:&([0-9a-f:.]{2,45})-([0-9]{1,3}))?")
BROADCAST = IPv4Address("255.255.255.255")
_canonical = msgspec.json.Encoder(order="sorted")
OFFERS = "Backends"
MOST_OFFERS = 16
"""More than there are backends."""


class HeldLease(msgspec.Struct, frozen=True, kw_only=True):
    """The lease this node holds. ``expires`` is seconds since the epoch, None for a static reservation.

    It is what a node remembers over a restart (``encode_held``), so that it can go on while etcd is away.
    """

    lease: Lease
    expires: float | None
    etcd_lease: int = 0
    """Id of the etcd lease the record hangs on, by which a node knows its own writing again; 0: none or unknown."""

    @property
    def permanent(self) -> bool:
        """Whether the record is a static reservation, which is never renewed."""
        return self.expires is None


def decode_key(name: str) -> tuple[IPv4Network | None, IPv6Network | None]:
    """Subnets named by a record's name. Raises ConfigError."""
    match = _KEY.fullmatch(name)
    if match is None:
        raise ConfigError(
            _obj(name), "key", name, "expected <IPv4>-<length> or <IPv4>-<length>&<IPv6>-<length>"
        )
    base, length, base6, length6 = match.groups()
    subnet6 = None if base6 is None else _subnet(name, IPv6Network, base6, length6)
    if (base, length) == ("0.0.0.0", "0") and subnet6 is not None:
        subnet = None
    else:
        subnet = _subnet(name, IPv4Network, base, length)
    if lease_key(subnet, subnet6) != name:
        raise ConfigError(_obj(name), "key", name, f"expected it to be written {lease_key(subnet, subnet6)}")
    return subnet, subnet6


def decode_attrs(name: str, raw: bytes) -> LeaseAttrs:
    """The value of the record called ``name``. Raises ConfigError."""
    fields = read_object(raw, _obj(name))
    return LeaseAttrs(
        public_ip=_unicast(fields, "PublicIP", fields.address("PublicIP", IPv4Address)),
        public_ipv6=_unicast(fields, "PublicIPv6", fields.address("PublicIPv6", IPv6Address)),
        backend_type=fields.text("BackendType"),
        backend_data=_data(fields, "BackendData"),
        backend_v6_data=_data(fields, "BackendV6Data"),
        offers=read_offers(fields),
    )


def decode_lease(name: str, raw: bytes) -> Lease:
    """A whole record. Raises ConfigError. Needs a public address: without one nobody can be reached there."""
    subnet, subnet6 = decode_key(name)
    attrs = decode_attrs(name, raw)
    if attrs.public_ip is None and attrs.public_ipv6 is None:
        raise ConfigError(_obj(name), "PublicIP", shorten(raw), "a lease needs PublicIP or PublicIPv6")
    return Lease(subnet=subnet, subnet6=subnet6, attrs=attrs)


def encode_attrs(attrs: LeaseAttrs) -> bytes:
    """The value flannel's Go encoder writes for the same attributes."""
    out: dict[str, Any] = {
        "PublicIP": str(attrs.public_ip or "0.0.0.0"),
        "PublicIPv6": None if attrs.public_ipv6 is None else str(attrs.public_ipv6),
    }
    if attrs.backend_type:
        out["BackendType"] = attrs.backend_type
    if attrs.backend_data is not None:
        out["BackendData"] = msgspec.Raw(attrs.backend_data)
    if attrs.backend_v6_data is not None:
        out["BackendV6Data"] = msgspec.Raw(attrs.backend_v6_data)
    if attrs.offers:
        out[OFFERS] = msgspec.Raw(encode_offers(attrs.offers))
    return msgspec.json.encode(out)


def encode_offers(offers: Iterable[Offer]) -> bytes:
    """A JSON array of objects with the names of lease values."""
    return msgspec.json.encode(
        [
            {"BackendType": offer.backend_type}
            | {
                name: msgspec.Raw(data)
                for name, data in (
                    ("BackendData", offer.backend_data),
                    ("BackendV6Data", offer.backend_v6_data),
                )
                if data is not None
            }
            for offer in offers
        ]
    )


def read_offers(fields: Fields, name: str = OFFERS) -> tuple[Offer, ...]:
    """The member in which ``encode_offers`` stands, sorted by type. Raises ConfigError."""
    value = fields.value(name)
    if value is None:
        return ()
    if not isinstance(value, list) or len(value) > MOST_OFFERS:
        raise fields.error(name, f"expected an array of {MOST_OFFERS} backends at most")
    found: dict[str, Offer] = {}
    for item in value:
        if not isinstance(item, dict):
            raise fields.error(name, "expected an array of objects")
        inner = Fields(item, fields.obj, f"{fields.path}{name}.")
        kind = inner.text("BackendType")
        if not kind:
            raise inner.error("BackendType", "expected the name of a backend")
        found[kind] = Offer(
            backend_type=kind,
            backend_data=_data(inner, "BackendData"),
            backend_v6_data=_data(inner, "BackendV6Data"),
        )
    return tuple(found[kind] for kind in sorted(found))


def encode_held(held: HeldLease) -> bytes:
    """The held lease as a node keeps it on its own disk."""
    value = msgspec.Raw(encode_attrs(held.lease.attrs))
    return msgspec.json.encode(
        {"Key": held.lease.key, "Value": value, "Expires": held.expires, "EtcdLease": str(held.etcd_lease)}
    )


def decode_held(raw: bytes) -> HeldLease:
    """What ``encode_held`` wrote. Raises ConfigError."""
    fields = read_object(raw, "remembered lease")
    expires = fields.value("Expires")
    if expires is not None and (isinstance(expires, bool) or not isinstance(expires, (int, float))):
        raise fields.error("Expires", "expected seconds since the epoch or null")
    if fields.members("Value") is None:
        raise fields.error("Value", "expected a lease value")
    lease = decode_lease(fields.text("Key"), msgspec.json.encode(fields.value("Value")))
    # As text: 63 bits are more than other readers of JSON have for a number.
    number = fields.text("EtcdLease")
    return HeldLease(
        lease=lease,
        expires=None if expires is None else float(expires),
        etcd_lease=int(number) if number.isascii() and number.isdigit() else 0,
    )


def canonical_json(value: Any) -> bytes:
    """Backend data in the one form in which it is stored and compared: sorted keys, no spaces."""
    return _canonical.encode(value)


def _obj(name: str) -> str:
    return f"lease {name[:100]!r}"


def _subnet(name: str, kind: type[Any], base: str, length: str) -> Any:
    """One half of a key. A prefix of length 0 or a whole host's worth is nobody's pod subnet."""
    longest = 31 if kind is IPv4Network else 127
    if not is_number(length) or not 1 <= int(length) <= longest:
        raise ConfigError(_obj(name), "prefix length", length, f"expected 1..{longest}")
    try:
        return kind(f"{base}/{length}")
    except ValueError as exc:
        raise ConfigError(_obj(name), "subnet", f"{base}-{length}", str(exc)) from None


def _unicast(fields: Fields, name: str, address: Any) -> Any:
    """An address peers can send to, or None."""
    found: Address | None = address
    if found is not None and (found.is_multicast or found.is_loopback or found == BROADCAST):
        raise fields.error(name, "expected a unicast address other hosts can reach")
    return found


def _data(fields: Fields, name: str) -> bytes | None:
    """Backend data in canonical form: any JSON object; a string in networks of type extension."""
    value = fields.value(name)
    if value is None:
        return None
    if not isinstance(value, dict | str):
        raise fields.error(name, "expected an object or a string")
    try:
        return canonical_json(value)
    except (msgspec.EncodeError, ValueError, RecursionError) as exc:
        raise fields.error(name, str(exc) or "too deeply nested") from None
