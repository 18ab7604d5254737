"""What an endpoint's record says about how it was attached, written by ADD and read back by everything later.

The record is the network configuration of ADD without prevResult. When another plugin did the IPAM its answer is
kept in it too, under a key of ours, because nobody else remembers gateways and routes. DEL by the collector sends
the record to that plugin; a key it does not know does not hurt (CNI specification 1.1.0, section 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import ip_interface

import msgspec

from pycni.agent.cni_addresses import Addressing, range_sets
from pycni.attach.compile import compile_attachment
from pycni.attach.plan import AttachPlan
from pycni.errors import CniError, ConfigError
from pycni.ipam.allocate import Allocation
from pycni.model.cni import CniResult, IpResult, PluginConf, Request, RouteConf
from pycni.model.endpoint import Endpoint, Owner
from pycni.model.family import show_mac
from pycni.model.podnet import PodNetwork
from pycni.wire.cni import NEWEST
from pycni.wire.cniconf import parse_conf, parse_conf_for_removal
from pycni.wire.cniresult import decode_result, shape

IPAM_RESULT = "pycni.dev/ipam-result"


def new_endpoint(plan: AttachPlan, conf: PluginConf, request: Request, given: Addressing) -> Endpoint:
    """The record of an attachment about to be made; where and when is the caller's to fill in."""
    return Endpoint(
        network=plan.owner.network,
        container_id=plan.owner.container_id,
        ifname=plan.owner.ifname,
        netns=request.netns,
        attachment=conf.attachment,
        host_ifname=plan.host,
        mac=show_mac(plan.mac),
        addresses=tuple(address for address, _ in plan.reported_ips),
        pod_namespace=request.args.get("K8S_POD_NAMESPACE", ""),
        pod_name=request.args.get("K8S_POD_NAME", ""),
        pod_uid=request.args.get("K8S_POD_UID", ""),
        conf=_recordable(conf, request, given),
    )


def _recordable(conf: PluginConf, request: Request, given: Addressing) -> bytes:
    if given.routes is None and conf.prev_result_raw is None:
        return request.stdin
    kept = {key: value for key, value in conf.raw.items() if key != "prevResult"}
    if given.routes is not None:
        ips = tuple(IpResult(address=item.address, gateway=item.gateway) for item in given.allocations)
        kept[IPAM_RESULT] = shape(CniResult(ips=ips, routes=given.routes), NEWEST)
    return msgspec.json.encode(kept)


def removal_request(endpoint: Endpoint, path: Sequence[str] = ()) -> Request:
    """DEL as a runtime would send it, from the record alone and without a namespace; ``path`` is CNI_PATH."""
    return _request(endpoint, "DEL", path)


def recorded_conf(endpoint: Endpoint) -> PluginConf | None:
    """The configuration an endpoint was attached with as far as DEL needs it, None when the record is unreadable."""
    try:
        return parse_conf_for_removal(_request(endpoint, "DEL"))
    except CniError:
        return None


def recorded_plan(endpoint: Endpoint, podnet: PodNetwork | None) -> AttachPlan:
    """The plan ADD compiled, compiled again from the record. CniError when the record does not give it."""
    conf = parse_conf(_request(endpoint, "ADD"))
    routes: Sequence[RouteConf] | None = None
    gateways = {item.subnet: item.gateway for inner in range_sets(conf, podnet) for item in inner}
    allocations = [Allocation(address, gateways.get(address.network)) for address in endpoint.addresses]
    if IPAM_RESULT in conf.raw:
        answer = decode_result(conf.raw[IPAM_RESULT], NEWEST)
        routes = answer.routes
        allocations = [Allocation(ip_interface(item.address), item.gateway) for item in answer.ips]
    return compiled(conf, podnet, allocations, endpoint.owner, routes)


def compiled(
    conf: PluginConf,
    podnet: PodNetwork | None,
    addresses: Sequence[Allocation],
    owner: Owner,
    routes: Sequence[RouteConf] | None,
) -> AttachPlan:
    """``compile_attachment`` with its complaints as CniError 7."""
    try:
        return compile_attachment(conf, podnet, addresses, owner, routes)
    except ConfigError as exc:
        raise CniError(CniError.INVALID_NETWORK_CONFIG, str(exc)) from exc


def _request(endpoint: Endpoint, command: str, path: Sequence[str] = ()) -> Request:
    environment = {
        "CNI_CONTAINERID": endpoint.container_id,
        "CNI_NETNS": "",
        "CNI_IFNAME": endpoint.ifname,
    }
    if path:
        environment["CNI_PATH"] = ":".join(path)
    return Request(
        command="DEL" if command == "DEL" else "ADD",
        container_id=endpoint.container_id,
        ifname=endpoint.ifname,
        path=tuple(path),
        environment=environment,
        stdin=endpoint.conf,
    )
