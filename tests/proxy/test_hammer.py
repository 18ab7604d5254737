"""No request fails and none goes astray while endpoints are replaced a hundred times."""

import pytest

from tests.proxy.dataplanes import plain, sockets
from tests.proxy.hammer import hammer

NATIVE = {"nftables": lambda: plain("nftables"), "ebpf": sockets}


@pytest.mark.parametrize("plane", NATIVE)
def test_a_hundred_replacements_fail_no_request(plane):
    with NATIVE[plane]() as rig:
        asked, failures = hammer(rig)
        print(f"{rig.planes}: {asked} requests, {len(failures)} failed")
        assert not failures, "\n".join(failures[:10])
        assert asked > 300
