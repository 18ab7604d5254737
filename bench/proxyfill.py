"""Load services, and one for datagrams, into the kernel of this namespace and leave them there.

python -m bench.proxyfill nftables|ipvs COUNT
python -m bench.proxyfill ebpf COUNT BPFFS CGROUP CLIENT     with nftables behind it, as in the agent
"""

from __future__ import annotations

import sys

from bench.proxyload import add_datagrams, facts, filled
from pycni_proxy import planes
from pycni_proxy.engine import Engine


def main() -> None:
    plane, count = sys.argv[1], int(sys.argv[2])
    made = []
    if plane == "ebpf":
        from pycni_proxy import ebpf
        from pycni_proxy.ebpf.driver import Places, SockDriver

        bpffs, cgroup, client = sys.argv[3:]
        first = ebpf.make(facts(), Places(bpffs=bpffs, cgroup=cgroup))
        assert isinstance(first.driver, SockDriver)
        first.driver.namespaces.add(client)
        made = [first]
        plane = "nftables"
    made += planes.make([plane], facts())
    store = filled(count)
    add_datagrams(store)
    Engine(facts(), made).sync(store.snapshot())
    for item in made:
        item.driver.close()


if __name__ == "__main__":
    main()
