"""The udp driver against the forwarder's own loop, in a thread and without a device: what it tells and hears."""

from __future__ import annotations

import errno
import os
import socket
import threading

import msgspec
import pytest

from pycni.errors import KernelError
from pycni.forwarder.control import Control
from pycni.forwarder.loop import Loop
from pycni.kernel import udp_forwarder
from pycni.kernel.udp import Udp
from pycni.model.fabric import UdpLink
from pycni.model.udp import UdpKey, UdpPeer, UdpSecrets, udp_text
from pycni.model.wireguard import Secret
from pycni.wire import forwarder as wire
from tests.netns.fabric_nodes import until

HERE = socket.inet_aton("127.0.0.1")
PSK = Secret(bytes(range(32)))


class Forwarder:
    """The loop with a pipe for a device."""

    def __init__(self, folder) -> None:
        self._tun, self._other = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.loop = Loop(self._tun, Control(str(folder / "flannel0.sock")))
        self._thread = threading.Thread(target=self.loop.run)
        self._thread.start()
        self._folder = str(folder)

    @property
    def ended(self) -> bool:
        return not self._thread.is_alive()

    def close(self) -> None:
        if not self.ended:
            udp_forwarder.send(self._folder, "flannel0", [wire.Quit()])
        self._thread.join()
        os.close(self._tun)
        os.close(self._other)


@pytest.fixture
def forwarder(tmp_path):
    made = Forwarder(tmp_path)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def driver(tmp_path):
    made = Udp(lambda job: job())
    made.secrets = UdpSecrets(folder=str(tmp_path), psk=PSK)
    return made


def free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def link(port: int, psk: Secret | None = PSK) -> UdpLink:
    return UdpLink(
        name="flannel0",
        port=port,
        mtu=1400,
        local=(HERE,),
        public=(HERE,),
        psk=psk.fingerprint if psk is not None else "",
    )


def networks(*numbers: int, end: int = 9) -> dict[UdpKey, UdpPeer]:
    return {
        UdpKey("flannel0", bytes([10, 5, number, 0]), 24): UdpPeer(bytes([192, 0, 2, end]), 8285)
        for number in numbers
    }


def known(folder) -> dict[UdpKey, UdpPeer]:
    return {
        UdpKey("flannel0", each.network, each.prefix_len): UdpPeer(each.endpoint, each.port)
        for each in udp_forwarder.read(str(folder), "flannel0").entries
    }


def test_networks_are_put_changed_and_removed(forwarder, driver, tmp_path):
    assert driver.put(networks(1, 2, 3)) == {}
    assert driver.put(networks(3, 4, end=7)) == {}
    assert known(tmp_path) == networks(1, 2) | networks(3, 4, end=7)
    assert driver.remove(networks(1, 3, 99)) == {}
    assert known(tmp_path) == networks(2) | networks(4, end=7)


def test_thousands_go_in_one_request(forwarder, driver, tmp_path):
    many = {
        UdpKey("flannel0", bytes([10, high, low, 0]), 24): UdpPeer(bytes([192, 0, high, low]), 8285)
        for high in range(16)
        for low in range(256)
    }
    assert driver.put(many) == {}
    assert known(tmp_path) == many
    assert driver.remove(many) == {}
    assert known(tmp_path) == {}


def test_without_a_forwarder_putting_fails_for_each_and_removing_is_done(driver):
    failed = driver.put(networks(1, 2))
    assert failed.keys() == networks(1, 2).keys()
    assert {error.errno for error in failed.values()} == {errno.ENOENT}
    assert driver.remove(networks(1, 2)) == {}


def test_what_the_forwarder_refuses_is_an_error_in_its_words(forwarder, driver):
    key = UdpKey("flannel0", bytes([10, 5, 1, 1]), 24)
    [error] = driver.put({key: UdpPeer(bytes([192, 0, 2, 9]), 8285)}).values()
    assert (error.errno, error.transient) == (errno.EINVAL, False)
    assert "has bits of a host" in str(error)


def test_a_port_that_is_taken_is_told_and_everything_stays(forwarder, driver, tmp_path):
    first = free_port()
    driver._configure(link(first))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("127.0.0.1", 0))
        with pytest.raises(KernelError) as caught:
            driver._configure(link(other.getsockname()[1]))
    assert caught.value.errno == errno.EADDRINUSE
    state = udp_forwarder.read(str(tmp_path), "flannel0")
    assert (state.port, state.local, state.psk) == (first, (HERE,), PSK.fingerprint)
    second = free_port()
    driver._configure(link(second))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as again:
        again.bind(("127.0.0.1", first))


def test_a_key_the_driver_has_not_is_not_set(forwarder, driver):
    with pytest.raises(KernelError, match="not the key we have"):
        driver._configure(link(1, Secret(bytes(32))))
    driver.secrets = None
    with pytest.raises(KernelError, match="ENOKEY"):
        driver._configure(link(1))


def test_a_forwarder_of_another_version_is_ended(forwarder, driver, monkeypatch):
    monkeypatch.setattr(wire, "VERSION", wire.VERSION + 1)
    assert driver._state("flannel0") is None
    until(lambda: forwarder.ended, "it ends")


def test_a_forwarder_whose_socket_is_gone_ends_and_leaves_anothers_alone(forwarder, tmp_path):
    socket_file = tmp_path / "flannel0.sock"
    socket_file.unlink()
    socket_file.write_text("another's")
    until(lambda: forwarder.ended, "it ends")
    assert socket_file.read_text() == "another's"


def test_a_lost_or_slow_or_talkative_caller_does_not_disturb_the_others(forwarder, driver, tmp_path):
    callers = [socket.socket(socket.AF_UNIX) for _ in range(3)]
    try:
        for sock in callers:
            sock.settimeout(15)
            sock.connect(str(tmp_path / "flannel0.sock"))
        lost, slow, talkative = callers
        lost.sendall(b'{"type":"get"}\n' * 50)
        lost.close()
        slow.sendall(b'{"type":')
        talkative.sendall(b"nonsense\n" + b'{"type":"get"}\n' * 2)
        assert driver.put(networks(1)) == {}
        slow.sendall(b'"get"}\n')
        for sock, answers in ((slow, 1), (talkative, 3)):
            with sock.makefile("rb") as lines:
                states = [wire.decode_state(lines.readline()) for _ in range(answers)]
            assert (
                [bool(state.error) for state in states] == [False] if answers == 1 else [True, False, False]
            )
    finally:
        for sock in callers:
            sock.close()


def test_an_entry_in_words():
    [(key, peer)] = networks(1).items()
    assert udp_text(key, peer) == "forward 10.5.1.0/24 dev flannel0 to 192.0.2.9:8285"
    six = udp_text(UdpKey("flannel0", bytes(16), 0), UdpPeer(bytes(15) + b"\1", 1))
    assert six == "forward ::/0 dev flannel0 to [::1]:1"
    assert "psk" in link(1).text
    assert "psk" not in msgspec.structs.replace(link(1), psk="").text
