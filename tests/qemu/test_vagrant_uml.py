"""vagrant/provision in User-Mode Linux guests: hosts with a kernel of their own that has IPVS and ipip."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.lab.conftest import unique_name
from tests.lab.test_vagrant_hosts import verified
from tests.lab.vagrant_hosts import Guests

WANTED = {
    "PYCNI_FAMILY": "ipv4",
    "PYCNI_BACKEND": "ipip",
    "PYCNI_PROXY": "ipvs",
    "PYCNI_POLICY": "none",
    "PYCNI_BGP": "none",
    "PYCNI_PODS": "1",
}
"""That kernel has no nftables families for IP, so no policies."""


@pytest.mark.timeout(600)
def test_ipip_and_ipvs_work_between_hosts_made_by_the_scripts(tmp_path):
    with Guests(unique_name(), tmp_path, 2, **WANTED) as hosts, ThreadPoolExecutor() as pool:
        list(pool.map(hosts.provision, hosts.rows))
        hosts.cluster("up")
        for name in hosts.rows:
            code, rows, text = verified(hosts, name)
            assert code == 0, text
            found = {check: detail for _, _, check, detail in rows}
            assert "device" in found["kernel, ipip"]
            assert "virtual servers" in found["kernel, ipip"]
            assert all(f"{pod}-p1:" in found["ClusterIP from pod"] for pod in hosts.rows)
