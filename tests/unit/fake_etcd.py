"""etcd's key-value semantics in memory: revisions, etcd leases, transactions with range comparisons; and failures.

``fail(at, applied)`` makes the n-th request from now fail, before or after it took effect (an answer that got lost).
"""

import operator

from pycni.errors import StoreError
from pycni.sources.etcd_pb import rpc_pb2 as rpc

RESULTS = {
    rpc.Compare.EQUAL: operator.eq,
    rpc.Compare.GREATER: operator.gt,
    rpc.Compare.LESS: operator.lt,
    rpc.Compare.NOT_EQUAL: operator.ne,
}
TARGETS = {
    rpc.Compare.VERSION: "version",
    rpc.Compare.CREATE: "create_revision",
    rpc.Compare.MOD: "mod_revision",
    rpc.Compare.VALUE: "value",
    rpc.Compare.LEASE: "lease",
}


class FakeEtcd:
    def __init__(self):
        self.kvs = {}
        self.revision = 1
        self.leases = {}
        self.granted = 99
        self.requests = []
        self.before_txn = lambda: None
        self._failures = {}

    def fail(self, at=0, *, applied=False):
        self._failures[len(self.requests) + at] = applied

    def expire(self, lease):
        """An etcd lease ends: its keys go."""
        self.leases.pop(lease)
        for key in [key for key, kv in self.kvs.items() if kv.lease == lease]:
            self._delete(key)

    def write(self, key, value, lease=0):
        """Somebody else writes."""
        self._put(rpc.PutRequest(key=key.encode(), value=value, lease=lease))

    def value(self, key):
        kv = self.kvs.get(key.encode())
        return None if kv is None else kv.value

    async def range(self, request):
        return self._request("range", lambda: self._range(request))

    async def get(self, key):
        response = await self.range(rpc.RangeRequest(key=key.encode()))
        return response.kvs[0] if response.kvs else None

    async def lease_grant(self, ttl_s):
        def grant():
            self.granted += 1
            self.leases[self.granted] = ttl_s
            return self.granted, ttl_s

        return self._request("grant", grant)

    async def lease_revoke(self, lease):
        self._request("revoke", lambda: self.expire(lease))

    async def txn(self, request):
        self.before_txn()
        return self._request("txn", lambda: self._txn(request))

    def _request(self, name, act):
        applied = self._failures.pop(len(self.requests), None)
        self.requests.append(name)
        if applied is False:
            raise StoreError(f"{name} never arrived")
        answer = act()
        if applied:
            raise StoreError(f"the answer to {name} was lost")
        return answer

    def _header(self):
        return rpc.ResponseHeader(cluster_id=7, revision=self.revision)

    def _in(self, key, range_end):
        if not range_end:
            return [self.kvs[key]] if key in self.kvs else []
        return [kv for name, kv in sorted(self.kvs.items()) if key <= name < range_end]

    def _range(self, request):
        return rpc.RangeResponse(header=self._header(), kvs=self._in(request.key, request.range_end))

    def _put(self, request, revision=None):
        if request.lease and request.lease not in self.leases:
            raise StoreError("requested lease not found", transient=False)
        if revision is None:
            self.revision += 1
        old = self.kvs.get(request.key)
        self.kvs[request.key] = rpc.KeyValue(
            key=request.key,
            value=request.value,
            lease=request.lease,
            mod_revision=self.revision,
            create_revision=old.create_revision if old else self.revision,
            version=old.version + 1 if old else 1,
        )

    def _delete(self, key):
        self.revision += 1
        self.kvs.pop(key, None)

    def _holds(self, compare):
        name = TARGETS[compare.target]
        found = self._in(compare.key, compare.range_end) or [rpc.KeyValue()]
        return all(RESULTS[compare.result](getattr(kv, name), getattr(compare, name)) for kv in found)

    def _txn(self, request):
        succeeded = all(self._holds(compare) for compare in request.compare)
        operations = request.success if succeeded else request.failure
        writes = [op for op in operations if op.WhichOneof("request") != "request_range"]
        before = self.revision
        for op in writes:
            if op.WhichOneof("request") == "request_put":
                self._put(op.request_put)
            else:
                self._delete(op.request_delete_range.key)
        self.revision = before + bool(writes)
        for op in writes:
            kv = self.kvs.get(op.request_put.key)
            if kv is not None:
                kv.mod_revision = self.revision
                kv.create_revision = min(kv.create_revision, self.revision)
        return rpc.TxnResponse(header=self._header(), succeeded=succeeded)
