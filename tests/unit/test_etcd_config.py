"""Settings of the etcd client are checked before anything is dialled; secrets are not shown."""

import logging

import pytest

from pycni.errors import ConfigError
from pycni.sources.etcd_config import EtcdConfig, parse_endpoint, split_endpoints
from pycni.sources.sparing import Sparing


@pytest.mark.parametrize(
    ("url", "target", "tls"),
    [
        ("http://127.0.0.1:2379", "ipv4:127.0.0.1:2379", False),
        ("https://127.0.0.1:2379/", "ipv4:127.0.0.1:2379", True),
        ("http://[::1]:2379", "ipv6:[::1]:2379", False),
        ("https://etcd-0.etcd.kube-system.svc:2379", "dns:///etcd-0.etcd.kube-system.svc:2379", True),
        ("etcd:2379", "dns:///etcd:2379", False),
    ],
)
def test_endpoints(url, target, tls):
    endpoint = parse_endpoint(url)
    assert (endpoint.target, endpoint.tls) == (target, tls)


@pytest.mark.parametrize(
    "url",
    ["", "http://", "http://host", "http://host:0", "http://host:99999", "http://host:port", "ftp://host:2379",
     "http://host:2379/path", "http://host:2379?x=1", "http://user@host:2379", "unix:///run/etcd.sock",
     "http://[::1:2379", "http://ho st:2379", "http://-x:2379"],
)  # fmt: skip
def test_a_bad_endpoint_is_named(url):
    with pytest.raises(ConfigError) as caught:
        parse_endpoint(url)
    assert caught.value.field == "endpoints"
    assert caught.value.value == url


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"endpoints": ()}, "endpoints"),
        ({"certfile": "/c"}, "certfile"),
        ({"keyfile": "/k"}, "certfile"),
        ({"username": "u"}, "username"),
        ({"password": "p"}, "username"),
        ({"endpoints": ("http://h:1",), "cafile": "/ca"}, "endpoints"),
    ],
    ids=lambda value: value if isinstance(value, str) else ",".join(value),
)
def test_contradictory_settings_are_refused(settings, field):
    with pytest.raises(ConfigError) as caught:
        EtcdConfig(**settings).check()
    assert caught.value.field == field


def test_with_certificates_an_endpoint_without_scheme_means_https():
    assert EtcdConfig(endpoints=("h:1",), cafile="/ca").check()[0].tls


def test_a_missing_or_wrong_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"cafile='/nowhere/ca\.pem': No such file"):
        EtcdConfig(endpoints=("https://h:1",), cafile="/nowhere/ca.pem").files()
    (tmp_path / "ca").write_bytes(b"DER?")
    with pytest.raises(ConfigError, match="expected a PEM file"):
        EtcdConfig(endpoints=("https://h:1",), cafile=str(tmp_path / "ca")).files()


def test_the_password_is_not_shown():
    config = EtcdConfig(username="u", password="hunter2")
    assert "hunter2" not in repr(config) + str(config)


def test_endpoints_are_split_at_commas():
    assert split_endpoints(" http://a:1, http://b:2,,") == ("http://a:1", "http://b:2")


def test_a_recurring_trouble_is_logged_sparingly(caplog):
    caplog.set_level(logging.INFO)
    clock = [0.0]
    sparing = Sparing(logging.getLogger("pycni.test"), 60.0, 5.0, lambda: clock[0])
    for clock[0] in (0.0, 1.0, 59.0, 61.0, 62.0):
        sparing.warn("etcd is away")
    sparing.warn("etcd is slow")
    sparing.warn("etcd refuses", logging.ERROR)
    for clock[0] in (68.0, 69.0, 70.0):
        sparing.warn("etcd is away")
        sparing.warn("etcd is slow")
    sparing.over("etcd is back")
    sparing.over("etcd is back")
    sparing.warn("etcd is away")
    assert caplog.messages == [
        "etcd is away",
        "etcd is away (trouble for 61 s)",
        "etcd refuses (trouble for 62 s)",
        "etcd is away (trouble for 68 s)",
        "etcd is back, after 70.0 s",
        "etcd is away",
    ]


def test_a_changed_trouble_is_said_after_a_short_while(caplog):
    clock = [0.0]
    sparing = Sparing(logging.getLogger("pycni.test"), 60.0, 5.0, lambda: clock[0])
    for clock[0] in range(11):
        sparing.warn("reset" if clock[0] % 2 else "closed")
    assert caplog.messages == ["closed", "reset (trouble for 5 s)", "closed (trouble for 10 s)"]
