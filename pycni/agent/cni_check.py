"""CHECK: what prevResult leads us to expect (CNI specification 1.1.0, section 2 "CHECK")."""

from __future__ import annotations

from pycni.ipam.allocate import Allocation
from pycni.model.cni import PluginConf, Request
from pycni.model.endpoint import Endpoint


def missing_interface(conf: PluginConf, request: Request) -> list[str]:
    """CHECK: prevResult has to name our interface in this very sandbox (versions that name interfaces)."""
    assert conf.prev_result is not None, "checked by the caller"
    if not conf.prev_result.interfaces:
        return []
    sandboxes = [item.sandbox for item in conf.prev_result.interfaces if item.name == request.ifname]
    if request.netns in sandboxes:
        return []
    return [f"prevResult has {request.ifname} in {sandboxes or 'no sandbox'}, not in {request.netns}"]


def expected_addresses(
    conf: PluginConf, request: Request, endpoint: Endpoint | None, faults: list[str]
) -> list[Allocation]:
    """CHECK: the addresses of prevResult that are ours: by the record, without one by the interface they are on."""
    assert conf.prev_result is not None, "checked by the caller"
    shown = conf.prev_result
    if endpoint is not None:
        ours = set(endpoint.addresses)
        faults += [f"prevResult lacks {address}" for address in ours - {item.address for item in shown.ips}]
        found = [item for item in shown.ips if item.address in ours]
    else:
        indexes = {
            i for i, item in enumerate(shown.interfaces) if item.sandbox and item.name == request.ifname
        }
        found = [item for item in shown.ips if item.interface is None or item.interface in indexes]
    return [Allocation(item.address, item.gateway) for item in found]
