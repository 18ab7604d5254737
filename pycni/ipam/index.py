"""Reservations as they are looked for: by address, by owner, and as the ranges that are taken."""

from __future__ import annotations

from pycni.ipam.allocate import Taken
from pycni.ipam.journal import Entry, Listing
from pycni.model.family import Address


class Index:
    """What the files said last, found both ways."""

    __slots__ = ("by_address", "by_owner", "last", "taken")

    def __init__(self, listing: Listing) -> None:
        self.by_address = listing.entries
        self.by_owner: dict[Entry, tuple[Address, ...]] = {}
        self.last = listing.last
        self.taken = Taken(listing.entries)
        for address, entry in listing.entries.items():
            self.by_owner[entry] = (*self.by_owner.get(entry, ()), address)

    def add(self, address: Address, entry: Entry) -> None:
        """It is there now."""
        self.by_address[address] = entry
        self.by_owner[entry] = (*self.by_owner.get(entry, ()), address)
        self.taken.add(address)

    def remove(self, address: Address) -> None:
        """It is there no more; nothing when it was not."""
        entry = self.by_address.pop(address, None)
        if entry is None:
            return
        left = tuple(other for other in self.by_owner[entry] if other != address)
        if left:
            self.by_owner[entry] = left
        else:
            del self.by_owner[entry]
        self.taken.discard(address)
