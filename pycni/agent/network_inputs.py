"""What backends need from this node before a plan can be made: MACs, keys, the output of a command.

Life: ``NetworkPass`` asks before each new plan, for every net-conf this node has just then; what a driver has to know
goes to it on the way. Nothing is made twice: MACs are kept by the pass, keys in files, outputs by ``kernel/extension``.
On the event loop; what blocks is done by ``work``.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Protocol, TypeVar

import msgspec

from pycni.agent.fabric_sync import FabricSync
from pycni.agent.identity import choose_macs, machine_id
from pycni.agent.network_plan import NodeOptions, plain_node
from pycni.agent.settings import Settings
from pycni.agent.wireguard_rotate import KeyRotation
from pycni.backends.extension import Extension, environment
from pycni.backends.vxlan import device_name
from pycni.errors import ConfigError
from pycni.model.lease import LeaseAttrs
from pycni.model.network import NetConf
from pycni.model.node import Underlay
from pycni.model.udp import UdpSecrets

T = TypeVar("T")


class Work(Protocol):
    """Runs a blocking call on the worker thread."""

    def __call__(self, job: Callable[[], T]) -> Awaitable[T]:
        """Its result, or what it raises."""
        ...


class Inputs(msgspec.Struct, frozen=True, kw_only=True):
    """Of one node, as ``make_plan`` takes them."""

    macs: Mapping[str, bytes] = {}
    wireguard_key: bytes = b""
    following_key: bytes = b""
    extension_output: str = ""


class InputMaker:
    """One per pass."""

    def __init__(
        self, settings: Settings, options: NodeOptions, sync: FabricSync, work: Work, keys: KeyRotation
    ) -> None:
        self._settings = settings
        self._options = options
        self._sync = sync
        self._work = work
        self._keys = keys

    async def make(
        self,
        confs: Iterable[NetConf],
        underlay: Underlay,
        macs: Mapping[str, bytes],
        published: LeaseAttrs | None,
        published_key: bytes,
    ) -> Inputs:
        """Inputs for all these net-confs. Raises ConfigError, KernelError.

        ``macs``: those chosen before; ``published``: what peers were told last; ``published_key``: what our lease says.
        """
        made = Inputs(macs=macs)
        for conf in confs:
            found = await self._inputs(conf, underlay, made.macs, published, published_key)
            made = msgspec.structs.replace(made, **found)
        return made

    async def _inputs(
        self,
        conf: NetConf,
        underlay: Underlay,
        macs: Mapping[str, bytes],
        published: LeaseAttrs | None,
        published_key: bytes,
    ) -> dict[str, object]:
        """What one net-conf adds."""
        kind = conf.backend.type
        if kind == "vxlan":
            return {"macs": await self._macs(conf, macs, published)}
        if kind == "wireguard":
            key, following = await self._wireguard(conf, published_key)
            return {"wireguard_key": key, "following_key": following}
        if kind == "udp":
            await self._udp(conf)
        if kind == Extension.name:
            variables = environment(plain_node(self._options, underlay), conf, None, None)
            commands = conf.backend.commands
            output = await self._work(lambda: self._sync.extension.start(commands, variables))
            return {"extension_output": output}
        return {}

    async def _macs(
        self, conf: NetConf, known: Mapping[str, bytes], published: LeaseAttrs | None
    ) -> Mapping[str, bytes]:
        """MACs for the devices this net-conf asks for, chosen once."""
        vni = conf.backend.vni
        names = {device_name(family, vni) for family in conf.families}
        if names <= known.keys():
            return known
        links = await self._work(lambda: self._sync.devices(names))
        machine = await self._work(machine_id)
        chosen = choose_macs(
            self._settings.node_name,
            machine,
            vni,
            conf.families,
            links=links,
            published=published.by("vxlan") if published is not None else None,
        )
        return {**chosen, **known}

    async def _wireguard(self, conf: NetConf, published_key: bytes) -> tuple[bytes, bytes]:
        """Our public key and the one to follow it; the driver has what goes with it."""

        def job() -> tuple[bytes, bytes]:
            keys = self._keys.take(conf.backend.psk, published_key)
            self._sync.take_secrets(keys.secrets)
            return keys.secrets.public_key, keys.following

        return await self._work(job)

    async def _udp(self, conf: NetConf) -> None:
        """Give the driver what the forwarder needs."""
        if conf.backend.psk is not None and importlib.util.find_spec("cryptography") is None:
            reason = "needs the Python package cryptography: install pycni[udp]"
            raise ConfigError("net-conf", "Backend.PSK", "(hidden)", reason)
        folder = os.path.join(self._settings.state_dir, "udp")
        await self._work(lambda: self._sync.take_secrets(UdpSecrets(folder=folder, psk=conf.backend.psk)))
