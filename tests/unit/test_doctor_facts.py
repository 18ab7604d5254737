"""Files the doctor reads, as people and distributions write them."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from pycni.doctor.model import ConfFile
from pycni.kernel.hostfacts import conf_files, kernel_options, networkd, unmanaged

OPTIONS = b"#\nCONFIG_VXLAN=m\n# CONFIG_NET_IPIP is not set\nCONFIG_VETH=y\nCONFIG_HZ=250\n"


@pytest.mark.parametrize("name", ["config-{0}", "config.gz"])
def test_options_of_a_kernel_are_read_from_either_kind_of_file(tmp_path: Path, name: str) -> None:
    file = tmp_path / name.format("6.1.0")
    file.write_bytes(gzip.compress(OPTIONS) if name.endswith("gz") else OPTIONS)
    found = kernel_options("6.1.0", (str(tmp_path / "nothing"), str(tmp_path / name)))
    assert {name: found[name] for name in ("VXLAN", "NET_IPIP", "VETH", "WIREGUARD")} == {
        "VXLAN": "m", "NET_IPIP": "n", "VETH": "y", "WIREGUARD": "n"
    }  # fmt: skip
    assert "HZ" not in found


def test_a_kernel_without_its_configuration_is_not_known(tmp_path: Path) -> None:
    assert kernel_options("6.1.0", (str(tmp_path / "config"),)) == {}


def test_networks_are_found_as_the_runtime_finds_them(tmp_path: Path) -> None:
    (tmp_path / "10-pycni.conflist").write_text(
        '{"name": "pycni", "plugins": [{"type": "pycni"}, {"type": "portmap"}]}'
    )
    (tmp_path / "05-old.conf").write_text('{"name": "old", "type": "bridge"}')
    (tmp_path / "20-broken.json").write_text('{"name": ')
    (tmp_path / "30-odd.conflist").write_text('{"plugins": [7]}')
    (tmp_path / "00-off.conflist.off").write_text("{}")
    first, second, third, fourth = conf_files(str(tmp_path))
    assert first == ConfFile(name="05-old.conf", network="old", plugins=("bridge",))
    assert second == ConfFile(name="10-pycni.conflist", network="pycni", plugins=("pycni", "portmap"))
    assert (third.name, third.plugins, third.trouble.split(":")[1].strip()) == (
        "20-broken.json",
        (),
        "JSONDecodeError",
    )
    assert fourth.trouble
    assert list(conf_files(str(tmp_path / "nothing"))) == []


def test_later_places_and_drop_ins_of_networkd_count_more(tmp_path: Path) -> None:
    usr, etc = tmp_path / "usr", tmp_path / "etc"
    for folder in (usr, etc / "networkd.conf.d"):
        folder.mkdir(parents=True)
    (usr / "networkd.conf").write_text(
        "[Network]\nManageForeignRoutes=yes\nSpeedMeter=no\n[DHCPv4]\nDUIDType=vendor\n"
    )
    (etc / "networkd.conf.d" / "pycni.conf").write_text("# ours\n[Network]\n;x=1\nManageForeignRoutes = no\n")
    assert networkd((str(usr / "networkd.conf"), str(etc / "networkd.conf"))) == {
        "ManageForeignRoutes": "no", "SpeedMeter": "no"
    }  # fmt: skip


def test_devices_networkmanager_leaves_alone_are_gathered(tmp_path: Path) -> None:
    (tmp_path / "conf.d").mkdir()
    (tmp_path / "NetworkManager.conf").write_text(
        "[main]\nplugins=keyfile\n[keyfile]\nunmanaged-devices=mac:00:11\n"
    )
    (tmp_path / "conf.d" / "a.conf").write_text(
        "[keyfile]\nunmanaged-devices+=interface-name:cni*; interface-name:veth*,interface-name:flannel*\n"
    )
    assert list(unmanaged((str(tmp_path), str(tmp_path / "nothing")))) == [
        "mac:00:11", "interface-name:cni*", "interface-name:veth*", "interface-name:flannel*"
    ]  # fmt: skip
