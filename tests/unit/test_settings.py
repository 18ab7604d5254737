"""Settings: precedence, kinds, contradictions. All of it without a kernel."""

from __future__ import annotations

import json
import re
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_network
from pathlib import Path

import pytest

from pycni.agent import settings_text
from pycni.agent.settings import TABLE, Settings, SettingsError
from pycni.agent.settings_file import IGNORED, REFUSED, load, password

DOCS = Path(__file__).parents[2] / "docs" / "configuration.md"


def settings(*argv: str, **environment: str) -> Settings:
    return load(argv, environment, "node-a").settings


def refusals(*argv: str, **environment: str) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        load(argv, environment, "node-a")
    return [str(problem) for problem in caught.value.problems]


def test_table_and_struct_have_the_same_fields():
    assert sorted(row.field for row in TABLE) == sorted(Settings.__struct_fields__)


def test_defaults_are_flannels():
    found = settings()
    assert found.etcd_endpoints == ("http://127.0.0.1:2379",)
    assert found.etcd_prefix == "/coreos.com/network"
    assert found.subnet_file == "/run/flannel/subnet.env"
    assert (found.subnet_lease_renew_margin, found.etcd_lease_ttl) == (60, 86400)
    assert (found.ip_masq, found.healthz_ip, found.healthz_port) == (False, IPv4Address("0.0.0.0"), 0)
    assert (found.node_name, found.components) == ("node-a", ("network",))


ACCEPTED = [
    ("double dash and equals sign", ["--iface=eth1"], "iface", ("eth1",)),
    ("double dash and next word", ["--iface", "eth1"], "iface", ("eth1",)),
    ("single dash", ["-iface", "eth1"], "iface", ("eth1",)),
    ("repeated", ["--iface=eth1", "--iface=10.0.0.1"], "iface", ("eth1", "10.0.0.1")),
    ("commas", ["--iface=eth1, eth2"], "iface", ("eth1", "eth2")),
    ("regex keeps its comma", [r"--iface-regex=eth\d{1,2}"], "iface_regex", (r"eth\d{1,2}",)),
    ("bare boolean", ["--ip-masq", "--iface=e"], "ip_masq", True),
    ("boolean with value", ["--ip-masq=true"], "ip_masq", True),
    ("boolean off", ["--ip-masq=F"], "ip_masq", False),
    ("last one counts", ["--healthz-port=1", "--healthz-port=2"], "healthz_port", 2),
    ("value that starts with a dash", ["--etcd-password", "-x", "--etcd-username=u"], "etcd_password", "-x"),
    ("port defaults", ["--etcd-endpoints=http://e"], "etcd_endpoints", ("http://e:2379",)),
    ("scheme defaults", ["--etcd-endpoints=e:1,[fd00::1]:2"], "etcd_endpoints", ("http://e:1", "http://[fd00::1]:2")),
    ("endpoints are listed once", ["--etcd-endpoints=e:1,e:1"], "etcd_endpoints", ("http://e:1",)),
    ("prefix loses its slash", ["--etcd-prefix=/a/b/"], "etcd_prefix", "/a/b"),
    ("public address", ["--public-ip=192.0.2.7"], "public_ip", IPv4Address("192.0.2.7")),
    ("public v6 address", ["--public-ipv6=fd00::7"], "public_ipv6", IPv6Address("fd00::7")),
    ("health on v6", ["--healthz-ip=::1"], "healthz_ip", IPv6Address("::1")),
    ("exclusions", ["--ip-masq-exclude=10.0.0.0/8,fd00::/8"], "ip_masq_exclude", (ip_network("10.0.0.0/8"), IPv6Network("fd00::/8"))),
    ("verbosity", ["--v=4"], "log_level", "debug"),
    ("verbosity gives way", ["--v=9", "--log-level=error"], "log_level", "error"),
    ("flannel's kubeconfig", ["--kubeconfig-file=/k"], "kubeconfig", "/k"),
    ("kube-router's master", ["--master=https://10.0.0.1:6443/"], "kube_api_url", "https://10.0.0.1:6443"),
    ("kube-proxy's node port addresses", ["--nodeport-addresses=10.0.0.0/8"], "node_port_addresses", (ip_network("10.0.0.0/8"),)),
    ("kube-router's node port range", ["--service-node-port-range=30000:30100"], "node_port_range", (30000, 30100)),
    ("subnets from Kubernetes", ["--kube-subnet-mgr"], "kube_subnet_mgr", True),
    ("control socket beside the other", ["--cni-socket=/run/x/cni.sock"], "control_socket", "/run/x/agent.sock"),
    ("both components", ["--components=network,proxy"], "components", ("network", "proxy")),
    ("a path loses its slash", ["--state-dir=/x/"], "state_dir", "/x"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("argv", "field", "value"), [case[1:] for case in ACCEPTED], ids=[c[0] for c in ACCEPTED]
)
def test_flag_is_read(argv, field, value):
    assert getattr(settings(*argv), field) == value


REFUSALS = [
    ("cert without key", ["--etcd-certfile=/c", "--etcd-endpoints=https://e:1"], ["flag: etcd-certfile='/c': needs etcd-keyfile too"]),
    ("key without cert", ["--etcd-keyfile=/c"], ["flag: etcd-keyfile='/c': needs etcd-certfile too"]),
    ("user without password", ["--etcd-username=u"], ["flag: etcd-username='u': needs etcd-password or etcd-password-file too"]),
    ("password without user", ["--etcd-password=p"], ["flag: etcd-password='(hidden)': needs etcd-username too"]),
    ("margin 0", ["--subnet-lease-renew-margin=0"], ["flag: subnet-lease-renew-margin='0': not in 1..1439"]),
    ("margin 1440", ["--subnet-lease-renew-margin=1440"], ["flag: subnet-lease-renew-margin='1440': not in 1..1439"]),
    ("margin not a number", ["--subnet-lease-renew-margin=1h"], ["flag: subnet-lease-renew-margin='1h': not a whole number"]),
    ("health address", ["--healthz-ip=localhost"], ["flag: healthz-ip='localhost': not an IP address"]),
    ("health port", ["--healthz-port=65536"], ["flag: healthz-port='65536': not in 0..65535"]),
    ("public-ip is v6", ["--public-ip=fd00::1"], ["flag: public-ip='fd00::1': not an IPv4 address"]),
    ("public-ip nobody reaches", ["--public-ip=0.0.0.0"], ["flag: public-ip='0.0.0.0': not an address other nodes could reach (unspecified, loopback or multicast)"]),
    ("public-ipv6 is v4", ["--public-ipv6=1.2.3.4"], ["flag: public-ipv6='1.2.3.4': not an IPv6 address"]),
    ("can-reach beside iface", ["--iface=e", "--iface-can-reach=1.1.1.1"], ["flag: iface-can-reach='1.1.1.1': given together with iface or iface-regex"]),
    ("broken regex", ["--iface-regex=("], ["flag: iface-regex='(': not a regular expression (missing ), unterminated subpattern at position 0)"]),
    ("http and https", ["--etcd-endpoints=http://a:1,https://b:1"], ["flag: etcd-endpoints=('http://a:1', 'https://b:1'): mixes http and https"]),
    ("certificates over http", ["--etcd-cafile=/c", "--etcd-endpoints=http://a:1"], ["flag: etcd-cafile='/c': given together with http endpoints"]),
    ("endpoint with a path", ["--etcd-endpoints=http://a:1/v3"], ["flag: etcd-endpoints='http://a:1/v3': not an etcd endpoint like https://10.0.0.1:2379"]),
    ("one endpoint of two", ["--etcd-endpoints=a:1,b:0"], ["flag: etcd-endpoints='a:1,b:0': 'b:0' is port 0 is not in 1..65535"]),
    ("empty prefix", ["--etcd-prefix=/"], ["flag: etcd-prefix='/': names no key"]),
    ("unknown flag", ["--helthz-port=1"], ["flag: helthz-port='1': unknown setting; is healthz-port meant?"]),
    ("unknown flag like nothing", ["--zzz"], ["flag: zzz='': unknown setting"]),
    ("misspelt password stays hidden", ["--etcd-pasword=p"], ["flag: etcd-pasword='(hidden)': unknown setting; is etcd-password meant?"]),
    ("stray word", ["--ip-masq", "true"], ["command line: argument='true': not a flag (write --name=value)"]),
    ("missing value", ["--iface"], ["flag: iface='': needs a value"]),
    ("boolean", ["--ip-masq=yes"], ["flag: ip-masq='yes': neither true nor false"]),
    ("level", ["--log-level=trace"], ["flag: log-level='trace': not one of debug, info, warning, error"]),
    ("component", ["--components=network,nat"], ["flag: components='network,nat': 'nat' is not one of network, proxy, policy, bgp"]),
    ("routers without AS numbers", ["--peer-router-ips=192.0.2.9"], ["default: peer-router-asns=(): 0 for 1 peer-router-ips"]),
    ("ports of too few routers", ["--peer-router-ips=192.0.2.9", "--peer-router-asns=1", "--peer-router-ports=1,2"], ["flag: peer-router-ports=(1, 2): 2 for 1 peer-router-ips"]),
    ("AS number", ["--peer-router-ips=192.0.2.9", "--peer-router-asns=0"], ["flag: peer-router-asns='0': not in 1..4294967295"]),
    ("long socket path", ["--cni-socket=/" + "s" * 107], ["flag: cni-socket='/" + "s" * 107 + "': 108 bytes long, a Unix socket's path has at most 107"]),
    ("relative state folder", ["--state-dir=x"], ["flag: state-dir='x': not an absolute path"]),
    ("node name", ["--node-name=a b"], ["flag: node-name='a b': not a node name (letters, digits, '.', '-', '_', at most 253)"]),
    ("host bits in a network", ["--ip-masq-exclude=10.0.0.1/8"], ["flag: ip-masq-exclude='10.0.0.1/8': not a network in CIDR notation (10.0.0.1/8 has host bits set)"]),
    ("file that is not there", ["--etcd-password-file=/no/such", "--etcd-username=u"], ["settings: etcd-password-file='/no/such': No such file or directory"]),
    ("API address", ["--kube-api-url=10.0.0.1"], ["flag: kube-api-url='10.0.0.1': not a URL like https://10.0.0.1:6443"]),
    ("node ports upside down", ["--node-port-range=3-2"], ["flag: node-port-range='3-2': not a range within 1-65535"]),
    ("node ports", ["--node-port-range=3"], ["flag: node-port-range='3': not a range of ports like 30000-32767"]),
    ("addresses without a range", ["--run-loadbalancer"], ["flag: run-loadbalancer=True: needs loadbalancer-ip-range too"]),
    ("addresses for manifests", ["--run-loadbalancer", "--loadbalancer-ip-range=10.0.0.0/24", "--manifest-dir=/m"], ["flag: run-loadbalancer=True: given together with manifest-dir: addresses are written to the Kubernetes API"]),
    ("data plane", ["--proxy-mode=iptables"], ["flag: proxy-mode='iptables': not one of auto, nftables, ipvs, ebpf"]),
    ("two at once", ["--healthz-ip=x", "--public-ip=y"], ["flag: healthz-ip='x': not an IP address", "flag: public-ip='y': not an IPv4 address"]),
    ("a wrong value brings no contradiction along", ["--etcd-endpoints=:", "--etcd-cafile=/c"], ["flag: etcd-endpoints=':': not an etcd endpoint like https://10.0.0.1:2379"]),
]  # fmt: skip


@pytest.mark.parametrize(("argv", "lines"), [case[1:] for case in REFUSALS], ids=[c[0] for c in REFUSALS])
def test_refusal_names_setting_value_and_reason(argv, lines):
    assert sorted(refusals(*argv)) == sorted(lines)


def test_flag_beats_variable_beats_file_beats_default(tmp_path):
    file = tmp_path / "c.toml"
    file.write_text('healthz-port = 1\nlog-level = "debug"\nsubnet_lease_renew_margin = 7\n')
    found = settings(
        "--healthz-port=3", f"--config={file}", PYCNID_HEALTHZ_PORT="2", PYCNID_LOG_LEVEL="error"
    )
    assert (found.healthz_port, found.log_level, found.subnet_lease_renew_margin) == (3, "error", 7)


@pytest.mark.parametrize("name", [row.name for row in TABLE if row.flannel])
def test_flannels_variable_is_read_and_ours_beats_it(name):
    row = next(row for row in TABLE if row.name == name)
    assert row.variables[0] == f"PYCNID_{row.field.upper()}"
    assert f"FLANNELD_{row.field.upper()}" in row.variables


def test_flannels_variables():
    found = settings(
        FLANNELD_IFACE="eth1", FLANNELD_IP_MASQ="true", PYCNID_IP_MASQ="false", FLANNELD_PUBLIC_IP=""
    )
    assert (found.iface, found.ip_masq, found.public_ip) == (("eth1",), False, None)


def test_own_settings_are_not_read_from_flannels_variables():
    loaded = load([], {"FLANNELD_STATE_DIR": "/x", "FLANNELD_EVENT_QUEUE": "1"}, "n")
    assert loaded.settings.state_dir == "/var/lib/pycni"
    assert len(loaded.warnings) == 2


def test_unknown_variable_of_ours_is_refused_but_service_links_are_not():
    links = {
        "PYCNID_SERVICE_HOST": "10.0.0.1",
        "PYCNID_PORT": "tcp://10.0.0.1:80",
        "PYCNID_PORT_80_TCP_ADDR": "10.0.0.1",
        "PYCNID_METRICS_SERVICE_PORT_HTTP": "80",
    }
    assert load([], links, "n").warnings == ()
    assert refusals(PYCNID_HELTHZ_PORT="1") == [
        "environment PYCNID_HELTHZ_PORT: helthz-port='1': unknown setting; is healthz-port meant?"
    ]


def test_error_names_the_variable():
    assert refusals(FLANNELD_HEALTHZ_IP="x") == [
        "environment FLANNELD_HEALTHZ_IP: healthz-ip='x': not an IP address"
    ]


@pytest.mark.parametrize("flag", sorted(IGNORED))
def test_flannels_tuning_is_ignored_with_one_warning(flag):
    loaded = load([f"--{flag}=true", f"--{flag}=true"], {}, "n")
    assert len(loaded.warnings) == 1
    assert f"{flag} is ignored" in loaded.warnings[0]


@pytest.mark.parametrize("flag", sorted(REFUSED))
def test_flannels_other_modes_are_refused(flag):
    assert len(refusals(f"--{flag}=true")) == 1


def test_flannels_other_modes_switched_off_are_fine():
    assert load(["--ip-blackhole-route=false", "--iptables-forward-rules"], {}, "n").settings


FILES = [
    ("toml", 'iface = ["eth1", "eth2"]\nip-masq = true\nhealthz_port = 9', []),
    ("json", json.dumps({"iface": ["eth1", "eth2"], "ip-masq": True, "healthz-port": 9}), []),
    ("unknown key", 'ifaces = "x"', ["{}: ifaces='x': unknown setting; is iface meant?"]),
    ("list where one is wanted", "healthz-port = [1]", ["{}: healthz-port=[1]: a list is not allowed here"]),
    ("table", "[etcd]\nprefix = '/x'", ["{}: etcd={{'prefix': '/x'}}: a dict is not allowed here"]),
    ("fraction", "healthz-port = 1.5", ["{}: healthz-port=1.5: a float is not allowed here"]),
    ("null", '{"healthz-port": null}', ["{}: healthz-port=None: a NoneType is not allowed here"]),
    ("both spellings", "healthz-port = 1\nhealthz_port = 1", ["{}: healthz-port='': given twice, with dash and underscore"]),
    ("wrong value", "healthz-port = -1", ["{}: healthz-port='-1': not in 0..65535"]),
    ("broken json", '{"a"', ["flag: config='{}': Expecting ':' delimiter: line 1 column 5 (char 4)"]),
    ("broken toml", "a =", ["flag: config='{}': Invalid value (at end of document)"]),
    ("deep json", '{"a":' + "[" * 100_000, ["flag: config='{}': nested too deeply"]),
    ("not text", b"\xff\xfe", ["flag: config='{}': 'utf-8' codec can't decode byte 0xff in position 0: invalid start byte"]),
]  # fmt: skip


@pytest.mark.parametrize(("content", "lines"), [case[1:] for case in FILES], ids=[c[0] for c in FILES])
def test_file(tmp_path, content, lines):
    path = tmp_path / "config"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    if lines:
        assert refusals("--config", str(path)) == [line.format(path) for line in lines]
        return
    found = settings("--config", str(path))
    assert (found.iface, found.ip_masq, found.healthz_port) == (("eth1", "eth2"), True, 9)


def test_missing_file_and_folder_as_file(tmp_path):
    assert refusals("--config=/no/such") == ["flag: config='/no/such': No such file or directory"]
    assert refusals(PYCNID_CONFIG=str(tmp_path)) == [f"flag: config={str(tmp_path)!r}: Is a directory"]


def test_scheme_follows_the_certificates(tmp_path):
    for name in "cak":
        (tmp_path / name).touch()
    found = settings(f"--etcd-cafile={tmp_path / 'c'}", "--etcd-endpoints=e:1")
    assert found.etcd_endpoints == ("https://e:1",)


def test_password_comes_from_the_first_line_of_its_file(tmp_path):
    file = tmp_path / "p"
    file.write_text("s3cret\r\nrest")
    found = settings("--etcd-username=u", f"--etcd-password-file={file}")
    assert password(found) == "s3cret"
    file.write_text("\n")
    with pytest.raises(SettingsError, match="first line is empty"):
        password(found)


def test_password_is_in_no_representation():
    loaded = load(["--etcd-username=u", "--etcd-password=s3cret"], {}, "n")
    assert password(loaded.settings) == "s3cret"
    assert "s3cret" not in repr(loaded)
    assert "(hidden)" in repr(loaded.settings)
    assert "process list" in loaded.warnings[0]


def test_bad_host_name_asks_for_a_node_name():
    with pytest.raises(SettingsError, match="give --node-name"):
        load([], {}, "(none)")
    assert load(["--node-name=x"], {}, "(none)").settings.node_name == "x"


def test_renewal_of_a_short_lease_is_at_half_its_life():
    assert settings("--etcd-lease-ttl=10").renew_margin_seconds == 5
    assert settings("--subnet-lease-renew-margin=1439").renew_margin_seconds == 1439 * 60


def test_help_and_documentation_have_every_setting():
    text = settings_text.help_text()
    for row in TABLE:
        assert (f"--{row.name} " in text) is not row.hidden
    documented = DOCS.read_text()
    for begin, table in (
        ("settings", settings_text.settings_markdown()),
        ("flannel", settings_text.flannel_markdown()),
    ):
        match = re.search(rf"<!-- {begin} begin -->\n(.*?)<!-- {begin} end -->", documented, re.DOTALL)
        assert match is not None
        assert match[1] == table
