"""The files the network component leaves for its next life and for CNI plugins."""

import logging
import os
from ipaddress import IPv4Network, IPv6Network

import pytest

from pycni.agent import memory
from pycni.agent.memory import Memory
from pycni.model.podnet import PodNetwork
from pycni.wire.lease import HeldLease
from tests.unit.fabric_world import conf, lease

PODS = PodNetwork(subnets=(IPv4Network("10.5.1.0/24"),), networks=(IPv4Network("10.5.0.0/16"),), mtu=1450)


@pytest.mark.parametrize("families", ["4", "6", "46"])
@pytest.mark.parametrize("expires", [1234.5, None])
def test_what_is_saved_is_loaded(tmp_path, families, expires):
    others = conf(families, "host-gw").backend, conf(families, "wireguard", listen_port=7000).backend
    kept = Memory(HeldLease(lease=lease(1, families), expires=expires), conf(families), others)
    memory.save(str(tmp_path), kept)
    assert memory.load(str(tmp_path)) == kept
    assert os.stat(tmp_path / "lease.json").st_mode & 0o777 == 0o600


def test_nothing_was_saved(tmp_path):
    assert memory.load(str(tmp_path / "none")) is None
    assert memory.load_previous(str(tmp_path / "none")) == (None, None)


BAD = [
    b"",
    b"{",
    b"[]",
    b'{"Lease":{},"NetConf":{}}',
    b'{"Lease":null}',
    b"\xff\xfe",
    b'{"Lease":[],"NetConf":7}',
]


@pytest.mark.parametrize("content", BAD)
def test_an_unreadable_file_is_said_and_done_without(tmp_path, content, caplog):
    caplog.set_level(logging.WARNING, "pycni.network")
    (tmp_path / "lease.json").write_bytes(content)
    assert memory.load(str(tmp_path)) is None
    assert "lease.json: not readable, going on without" in caplog.text


def test_a_folder_in_the_place_of_the_file_is_said_and_done_without(tmp_path, caplog):
    (tmp_path / "lease.json").mkdir()
    assert memory.load(str(tmp_path)) is None
    assert "Is a directory" in caplog.text


def test_forgetting_is_harmless_twice(tmp_path):
    memory.save(str(tmp_path), Memory(HeldLease(lease=lease(1), expires=None), conf()))
    memory.forget(str(tmp_path))
    memory.forget(str(tmp_path))
    assert memory.load(str(tmp_path)) is None


def test_subnet_env_is_written_whole_with_its_folder_and_read_back(tmp_path):
    file = tmp_path / "run/flannel/subnet.env"
    memory.save_subnet_env(str(file), PODS)
    assert file.read_text().splitlines() == [
        "FLANNEL_NETWORK=10.5.0.0/16",
        "FLANNEL_SUBNET=10.5.1.1/24",
        "FLANNEL_MTU=1450",
        "FLANNEL_IPMASQ=false",
    ]
    assert os.listdir(file.parent) == ["subnet.env"]
    assert memory.load_previous(str(file)) == (IPv4Network("10.5.1.0/24"), None)


def test_a_file_that_says_so_already_is_not_touched(tmp_path):
    file = tmp_path / "subnet.env"
    memory.save_subnet_env(str(file), PODS)
    before = os.stat(file)
    memory.save_subnet_env(str(file), PODS)
    assert os.stat(file).st_ino == before.st_ino


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    file = tmp_path / "subnet.env"
    memory.save_subnet_env(str(file), PODS)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        memory.save_subnet_env(str(file), PodNetwork(subnets=(IPv6Network("fd00::/64"),), networks=(), mtu=1))
    assert os.listdir(tmp_path) == ["subnet.env"]
    assert "FLANNEL_MTU=1450" in file.read_text()


def test_an_unreadable_subnet_env_is_said_and_done_without(tmp_path, caplog):
    file = tmp_path / "subnet.env"
    file.write_text("FLANNEL_SUBNET=nonsense\n")
    assert memory.load_previous(str(file)) == (None, None)
    assert "FLANNEL_SUBNET" in caplog.text
