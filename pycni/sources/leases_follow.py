"""flannel's records on their way from etcd into the store.

Kind "lease": key = record name, value = ``Lease`` (our own included). Kind "netconf": key "config", value =
``NetConf``. A record that cannot be read is reported once and left alone; one that could be read before keeps its
last good value until it is deleted. An invalid or deleted net-conf leaves the last one in force.

When etcd comes back *empty or restored* (another cluster id, a lower revision), missing records were not deleted
by their owners, who are about to write them again: for ``grace_s`` such a listing only adds. An agent that starts at
that moment knows it by its own record, which is missing though it should live: for as long it does not count the
leases as listed, so that nothing of an earlier life is removed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection

from pycni.errors import ConfigError
from pycni.model.lease import Lease
from pycni.model.network import NetConf
from pycni.sources.etcd import EtcdClient
from pycni.sources.etcd_follow import Follower
from pycni.sources.etcd_watch import Changed, Listed, prefix_end
from pycni.store import Store
from pycni.view.subnets import fits, unfit
from pycni.wire.lease import decode_lease
from pycni.wire.netconf import decode_netconf, show_netconf, unknown_keys

log = logging.getLogger("pycni.leases")

LEASE, NETCONF, CONFIG = "lease", "netconf", "config"
SHOWN = 5
"""How many names a log line lists."""


class RecordFollower:
    """Follows leases and net-conf below ``prefix``.

    ``watched`` is a record's name (our own); ``on_watched`` is called with the revision at which it was seen to
    change, or None when a listing does not have it.
    """

    def __init__(self, client: EtcdClient, prefix: str, *, grace_s: float) -> None:
        self.prefix = prefix
        self.folder = f"{prefix}/subnets/"
        self.conf: NetConf | None = None
        """The last valid one seen."""
        self.malformed: dict[str, str] = {}
        """Record name -> why it cannot be read."""
        self.watched = ""
        self.on_watched: Callable[[int | None], None] = lambda _revision: None
        self.leases = Follower(
            client, self.folder, prefix_end(self.folder), on_listing=self._listed, on_changes=self._changed
        )
        self.config = Follower(
            client, f"{prefix}/config", on_listing=self._config_listed, on_changes=self._config_changed
        )
        self.expected = ""
        """Name of the record that an earlier life of ours left in etcd; "" when there is none or it has ended."""
        self.was_missing: Callable[[], bool] = lambda: False
        """Whether it was found missing, and maybe written again, before the first listing."""
        self._grace_s = grace_s
        self._additive_until = 0.0
        self._bereft_until: float | None = None
        self._store = Store()
        self._reported_conf: bytes | None = None
        self._reported_unfit: list[str] = []

    async def run(self, store: Store) -> None:
        """Follow for ever."""
        self._store = store
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.leases.run(), name="follow leases")
            tasks.create_task(self.config.run(), name="follow net-conf")

    def decode_conf(self, value: bytes) -> NetConf | None:
        """A net-conf, or None; what is wrong or unknown in it is said once."""
        news = value != self._reported_conf
        self._reported_conf = value
        try:
            conf = decode_netconf(value)
        except ConfigError as exc:
            if news:
                log.error("etcd key %s/config: %s", self.prefix, exc)  # noqa: TRY400  # no bug of ours to trace
            return None
        unknown = unknown_keys(value) if news else ()
        if unknown:
            log.warning("etcd key %s/config: unknown keys ignored: %s", self.prefix, ", ".join(unknown))
        return conf

    # --- leases ----------------------------------------------------------------------------------------------

    def _listed(self, listing: Listed) -> None:
        loop = asyncio.get_running_loop()
        if listing.replaced:
            text = "etcd was replaced (it is at revision %d now): for %.0f s no lease is forgotten"
            log.warning(text, listing.revision, self._grace_s)
            self._additive_until = loop.time() + self._grace_s
            loop.call_later(self._grace_s + 0.01, self.leases.relist)
        held = self._store.snapshot().of(LEASE)
        records = {record.key.removeprefix(self.folder): record for record in listing.records}
        leases: dict[str, Lease] = {}
        for name, record in records.items():
            lease = self._decode(name, record.value)
            if lease is not None:
                leases[name] = lease
            elif name in held:
                leases[name] = held[name]
        self.malformed = {name: why for name, why in self.malformed.items() if name in records}
        if self._bereft(records):
            for name, lease in leases.items():
                self._store.put(LEASE, name, lease)
        else:
            if loop.time() < self._additive_until:
                leases = {**held, **leases}
            self._store.replace(LEASE, leases)
        if self.watched:
            own = records.get(self.watched)
            self.on_watched(own.mod_revision if own is not None else None)
        self._report_unfit()

    def _bereft(self, records: Collection[str]) -> bool:
        """Whether the listing is this life's first or in the grace after it, and not to be trusted."""
        loop = asyncio.get_running_loop()
        if self._bereft_until is None:
            missing = bool(self.expected) and (self.expected not in records or self.was_missing())
            self._bereft_until = loop.time() + self._grace_s if missing else 0.0
            if missing:
                text = (
                    "our record %s is missing though it has not ended: etcd may have lost its data;"
                    " for %.0f s nothing is removed"
                )
                log.warning(text, self.expected, self._grace_s)
                loop.call_later(self._grace_s + 0.01, self.leases.relist)
        return loop.time() < self._bereft_until

    def _changed(self, changed: Changed) -> None:
        misfits = False
        for change in changed.changes:
            name = change.key.removeprefix(self.folder)
            if change.record is None:
                self._store.delete(LEASE, name)
                self.malformed.pop(name, None)
            else:
                lease = self._decode(name, change.record.value)
                if lease is not None and self._store.put(LEASE, name, lease) and self._misfit(lease):
                    misfits = True
            if name == self.watched:
                self.on_watched(change.revision)
        if misfits:
            self._report_unfit()

    def _decode(self, name: str, value: bytes) -> Lease | None:
        """A record, or None and one line in the log when it cannot be read."""
        try:
            lease = decode_lease(name, value)
        except ConfigError as exc:
            if self.malformed.get(name) != str(exc):
                self.malformed[name] = str(exc)
                log.warning("ignoring etcd record %s: %s", self.folder + name[:100], exc)
            return None
        self.malformed.pop(name, None)
        return lease

    def _misfit(self, lease: Lease) -> bool:
        return self.conf is not None and not fits(self.conf, lease.subnet, lease.subnet6)

    def _report_unfit(self) -> None:
        """Say which leases do not fit the network, whenever that changes."""
        if self.conf is None:
            return
        names = unfit(self.conf, self._store.snapshot().of(LEASE).values())
        if names and names != self._reported_unfit:
            more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
            own = " (our own among them)" if self.watched in names else ""
            log.warning(
                "%d leases do not fit the network: %s%s%s", len(names), ", ".join(names[:SHOWN]), more, own
            )
        self._reported_unfit = names

    # --- net-conf --------------------------------------------------------------------------------------------

    def _config_listed(self, listing: Listed) -> None:
        if listing.records:
            self._config_seen(listing.records[0].value)
        else:
            log.warning("etcd key %s/config does not exist; the last net-conf stays in force", self.prefix)

    def _config_changed(self, changed: Changed) -> None:
        record = changed.changes[-1].record
        if record is not None:
            self._config_seen(record.value)
        else:
            log.warning("etcd key %s/config was deleted; the last net-conf stays in force", self.prefix)

    def _config_seen(self, value: bytes) -> None:
        conf = self.decode_conf(value)
        if conf is None:
            return
        if self.conf is not None and conf != self.conf:
            log.warning("net-conf changed to %s", show_netconf(value)[:500])
        self.conf = conf
        self._store.put(NETCONF, CONFIG, conf)
        self._store.mark_listed(NETCONF)
        self._report_unfit()
