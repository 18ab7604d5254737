"""The node's WireGuard key: one file, ours alone, made once."""

import base64
import logging
import subprocess
import sys

import pytest

from pycni.agent.wireguard_key import secrets
from pycni.errors import ConfigError
from pycni.model.wireguard import Secret, key_text


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
