"""The node's WireGuard key: one file, ours alone, made once, changed when the lease says the following one."""

import base64
import logging
import os
import subprocess
import sys

import msgspec
import pytest

from pycni.agent.wireguard_key import begin, keys
from pycni.agent.wireguard_rotate import CALM_S, DELAY_S, KeyRotation
from pycni.errors import ConfigError
from pycni.model.wireguard import Secret, key_text
from tests.unit.fabric_world import by_key, lease, wg_key


def secrets(folder, psk):
    return keys(folder, psk, b"").secrets


def test_a_key_is_made_once_with_its_public_half_as_wg_computes_it(tmp_path):
    first = secrets(str(tmp_path / "state"), None)
    file = tmp_path / "state/wireguard.key"
    assert file.stat().st_mode & 0o777 == 0o600
    shown = subprocess.run(["wg", "pubkey"], input=file.read_bytes(), capture_output=True, check=True).stdout
    assert shown.decode().strip() == key_text(first.public_key)
    assert secrets(str(tmp_path / "state"), None) == first
    assert secrets(str(tmp_path / "other"), None).private_key != first.private_key
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["wireguard.key"]


def test_the_key_agrees_with_rfc_7748():
    """Section 6.1, Alice."""
    private = bytes.fromhex("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a")
    from pycni.agent.wireguard_key import public_key

    assert (
        public_key(Secret(private)).hex()
        == "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a"
    )


def test_a_key_made_by_wg_is_taken_and_shut_for_others(tmp_path, caplog):
    file = tmp_path / "wireguard.key"
    file.write_bytes(subprocess.run(["wg", "genkey"], capture_output=True, check=True).stdout)
    file.chmod(0o644)
    with caplog.at_level(logging.WARNING):
        found = secrets(str(tmp_path), None)
    assert file.stat().st_mode & 0o777 == 0o600
    assert f"{file} was readable by others (mode 644)" in caplog.text
    assert base64.b64encode(found.private_key.value) == file.read_bytes().strip()
    assert key_text(found.private_key.value) not in caplog.text + repr(found)


@pytest.mark.parametrize(
    "content", ["", "secret-looking words", "A" * 43 + "="], ids=["empty", "no key", "zeros"]
)
def test_a_file_without_a_key_is_an_error_naming_it_alone(tmp_path, content):
    (tmp_path / "wireguard.key").write_text(content)
    with pytest.raises(ConfigError, match=r"wireguard key: file=.*wireguard.key.*holds no key") as caught:
        secrets(str(tmp_path), None)
    assert "looking" not in str(caught.value)


def test_a_place_that_cannot_be_written_is_an_error_naming_it(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"wireguard key: file='.*/file/wireguard.key': Not a directory"):
        secrets(str(tmp_path / "file"), None)


def test_without_the_library_the_error_says_what_to_install(tmp_path, monkeypatch):
    for name in ("cryptography.hazmat.primitives.asymmetric.x25519", "cryptography.hazmat.primitives"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match=r"install pycni\[wireguard\]"):
        secrets(str(tmp_path), None)


def test_a_following_key_is_in_force_once_the_lease_says_it(tmp_path):
    folder = str(tmp_path)
    first = secrets(folder, None)
    following = begin(folder)
    assert begin(folder) == following, "one at a time"
    for published in (b"", first.public_key, bytes(32)):
        found = keys(folder, None, published)
        assert (found.secrets, found.following) == (first, following)
    found = keys(folder, None, following)
    assert (found.secrets.public_key, found.following) == (following, b"")
    assert [path.name for path in tmp_path.iterdir()] == ["wireguard.key"]
    assert (tmp_path / "wireguard.key").stat().st_mode & 0o777 == 0o600
    assert keys(folder, None, following).secrets == found.secrets


@pytest.mark.parametrize(("age_h", "due"), [(23.9, False), (26.5, True), (-26.5, True)])
def test_a_key_is_due_by_its_age_whatever_the_clock_does(tmp_path, age_h, due):
    folder, now = str(tmp_path), 1_800_000_000.0
    secrets(folder, None)
    os.utime(tmp_path / "wireguard.key", (now, now))
    rotation = KeyRotation(folder, "n1", 24 * 3600, clock=lambda: now + age_h * 3600)
    before = rotation.take(None, b"")
    assert not before.following
    same = rotation.inputs(b"", 0.0) == (b"", False)
    assert same is not due
    assert bool(rotation.take(None, b"").following) is due
    assert rotation.inputs(b"", 0.0) == (b"", False), "one is under way"
    assert rotation.status.following == key_text(begin(folder)) if due else not rotation.status.following


def test_nodes_whose_keys_were_made_together_change_them_at_different_times(tmp_path):
    now, hour = 1_800_000_000.0, 3600.0
    first = set()
    for number in range(10):
        folder = tmp_path / f"n{number}"
        secrets(str(folder), None)
        os.utime(folder / "wireguard.key", (now, now))
        ages = []
        for minute in range(23 * 60, 27 * 60):
            rotation = KeyRotation(
                str(folder), f"n{number}", 24 * hour, clock=lambda minute=minute: now + minute * 60
            )
            rotation.take(None, b"")
            ages += [minute / 60] * (rotation.inputs(b"", 0.0) == (b"", True))
        first.add(min(ages))
    assert len(first) > 7, "a minute each"
    assert min(first) >= 24
    assert max(first) <= 26.5


def test_a_node_waits_until_its_peers_have_been_calm(tmp_path):
    rotation = KeyRotation(str(tmp_path), "n1", 0)
    rotation.held_back(by_key(rekeyed(2, wg_key(2))), 10.0)
    rotation.held_back(by_key(rekeyed(2, wg_key(7))), 20.0)
    rotation.ask()
    now = 20.01
    for _ in range(5):
        if rotation.inputs(b"", now) == (b"", True):
            break
        assert not rotation.take(None, b"").following
        _, wait_s = rotation.held_back(by_key(rekeyed(2, wg_key(7))), now)
        assert wait_s > 0, "asked again"
        now += wait_s
    assert now == pytest.approx(20.0 + DELAY_S + CALM_S, abs=0.05)
    assert rotation.take(None, b"").following


def rekeyed(number, key, families="4"):
    found = lease(number, families, "wireguard")
    data = msgspec.json.encode({"PublicKey": key_text(key)})
    attrs = msgspec.structs.replace(
        found.attrs, backend_data=data, backend_v6_data=data if "6" in families else None
    )
    return msgspec.structs.replace(found, attrs=attrs)


def test_a_peer_with_another_key_is_as_it_was_for_a_moment(tmp_path):
    rotation = KeyRotation(str(tmp_path), "n1", 0)
    old = by_key(rekeyed(2, wg_key(2)), rekeyed(3, wg_key(3)))
    assert rotation.held_back(old, 100.0) == (old, 0.0)
    new = old | by_key(rekeyed(2, wg_key(7)), rekeyed(4, wg_key(4)))
    expected = new | by_key(rekeyed(2, wg_key(2)))
    assert rotation.held_back(new, 200.0) == (expected, pytest.approx(DELAY_S))
    found, wait_s = rotation.held_back(new, 200.0 + DELAY_S / 2)
    assert (found, round(wait_s, 6)) == (expected, DELAY_S / 2)
    again = new | by_key(rekeyed(2, wg_key(8)))
    assert rotation.held_back(again, 200.0 + DELAY_S) == (again, 0.0), "counted from the first change"
    assert rotation.held_back(new, 300.0)[1] == pytest.approx(DELAY_S)


@pytest.mark.parametrize("change", ["gone", "other backend", "other address", "both families"])
def test_other_changes_of_leases_do_not_wait(tmp_path, change):
    rotation = KeyRotation(str(tmp_path), "n1", 0)
    families = "46" if change == "both families" else "4"
    old = rekeyed(2, wg_key(2), families)
    rotation.held_back(by_key(old), 1.0)
    new = {
        "gone": {},
        "other backend": by_key(lease(2, kind="vxlan")),
        "other address": by_key(
            msgspec.structs.replace(
                old, attrs=msgspec.structs.replace(old.attrs, public_ip=lease(9).attrs.public_ip)
            )
        ),
        "both families": by_key(rekeyed(2, wg_key(2), families)),
    }[change]
    assert rotation.held_back(new, 2.0) == (new, 0.0)
