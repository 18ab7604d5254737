"""vagrant/: what can be said of it without a hypervisor. Hosts made by its scripts: tests/lab/test_vagrant_hosts.py."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "vagrant"
SCRIPTS = sorted([*FOLDER.glob("*.sh"), *FOLDER.glob("provision/*.sh"), *ROOT.glob("tools/*.sh")])
PROVIDERS = {"libvirt": (), "virtualbox": ("--ignore-provider",)}
"""What is asked of validation: of libvirt Debian has Vagrant's plugin, VirtualBox itself Debian has not."""


def run(*words: str, folder: Path = FOLDER, **variables: str) -> subprocess.CompletedProcess[str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PYCNI_", "VAGRANT_"))}
    return subprocess.run(
        words, cwd=folder, env={**kept, **variables}, capture_output=True, text=True, check=False, timeout=100
    )


def settings(**variables: str) -> dict[str, str]:
    done = run("ruby", "settings.rb", "check", **variables)
    assert done.returncode == 0, done.stderr
    return dict(line.split("=", 1) for line in done.stdout.splitlines())


@pytest.mark.parametrize("provider", PROVIDERS)
def test_vagrant_takes_the_vagrantfile(provider, tmp_path):
    homes = {"VAGRANT_HOME": str(tmp_path / "home"), "VAGRANT_DOTFILE_PATH": str(tmp_path / "dot")}
    done = run(
        "vagrant", "validate", *PROVIDERS[provider], PYCNI_PROVIDER=provider, HOME=str(tmp_path), **homes
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "validated successfully" in done.stdout


def test_hosts_are_a_router_and_as_many_nodes_as_wanted():
    assert settings(PYCNI_NODES="2", PYCNI_UNDERLAY="192.168.60.0/24", PYCNI_UNDERLAY6="fd60:1::/64")[
        "PYCNI_HOSTS"
    ] == ("router=192.168.60.2=fd60:1::2 node1=192.168.60.11=fd60:1::11 node2=192.168.60.12=fd60:1::12")


def test_an_empty_variable_is_none():
    assert settings(PYCNI_BACKEND="") == settings()


WRONG = {
    "PYCNI_NODES": ("0", "21", "three", "-1", "3.5", " 3"),
    "PYCNI_MEMORY": ("511", "2G"),
    "PYCNI_CPUS": ("0",),
    "PYCNI_PROVIDER": ("vmware",),
    "PYCNI_BOX": ("bookworm64", "a/b;reboot"),
    "PYCNI_UNDERLAY": ("192.168.57.0", "192.168.57.1/24", "10.0.0.0/8", "300.1.1.0/24"),
    "PYCNI_UNDERLAY6": ("fd57::", "fd57::1/64", "fd57::/48"),
    "PYCNI_FAMILY": ("both",),
    "PYCNI_BACKEND": ("VXLAN", "geneve"),
    "PYCNI_ATTACHMENT": ("veth",),
    "PYCNI_PROXY": ("iptables",),
    "PYCNI_POLICY": ("on",),
    "PYCNI_BGP": ("frr",),
    "PYCNI_PODS": ("0",),
    "PYCNI_KUBERNETES": ("yes",),
}


EACH = """
require "json"; require "./settings"
puts JSON.parse(ARGV[0]).map { |given| begin PycniSettings.read(given); ""; rescue PycniSettings::Wrong => e; e.message end }.to_json
"""


def test_a_wrong_value_is_refused_in_one_line_with_its_variable():
    cases = [(name, value) for name, values in WRONG.items() for value in values]
    done = run("ruby", "-e", EACH, json.dumps([{name: value} for name, value in cases]))
    assert done.returncode == 0, done.stderr
    for (name, value), told in zip(cases, json.loads(done.stdout), strict=True):
        assert told.startswith(f'vagrant: {name}="{value}": not '), (name, value)
        assert "\n" not in told
    assert set(WRONG) == {line.split("`")[1] for line in run("ruby", "settings.rb").stdout.splitlines()[2:]}


@pytest.mark.parametrize(
    ("variables", "told"),
    [
        ({"PYCNI_BACKEND": "ipip"}, 'PYCNI_BACKEND="ipip": carries IPv4 only, and PYCNI_FAMILY is "dual"'),
        (
            {"PYCNI_BACKEND": "bgp", "PYCNI_BGP": "none"},
            'PYCNI_BACKEND="bgp": needs PYCNI_BGP, which is "none"',
        ),
        ({"PYCNI_KUBERNETES": "1"}, 'PYCNI_MEMORY="1024": PYCNI_KUBERNETES needs 2048 at least'),
        ({"PYCNI_BACKENDS": "udp"}, 'PYCNI_BACKENDS="udp": no such setting'),
    ],
    ids=["ipip", "bgp", "kubernetes", "unknown"],
)
def test_what_does_not_go_together_is_refused(variables, told):
    done = run("ruby", "settings.rb", "check", **variables)
    assert (done.returncode, done.stderr) == (2, f"vagrant: {told}\n")


def test_all_that_is_wrong_is_told_at_once_and_vagrant_tells_it_too(tmp_path):
    wrong = {"PYCNI_NODES": "0", "PYCNI_PROXY": "haproxy"}
    told = run("ruby", "settings.rb", "check", **wrong).stderr
    assert len(told.splitlines()) == 2
    homes = {"VAGRANT_HOME": str(tmp_path / "home"), "VAGRANT_DOTFILE_PATH": str(tmp_path / "dot")}
    done = run("vagrant", "validate", HOME=str(tmp_path), **homes, **wrong)
    assert done.returncode == 1
    assert told.strip() in done.stderr


def test_the_table_in_the_readme_is_the_one_in_force():
    table = run("ruby", "settings.rb").stdout
    text = (FOLDER / "README.md").read_text()
    begin, end = "<!-- settings begin -->\n", "<!-- settings end -->"
    assert text[text.index(begin) + len(begin) : text.index(end)] == table


def test_scripts_know_the_same_words_as_the_settings():
    """A value the Vagrantfile lets through is one ``lib.sh`` takes."""
    rows = re.findall(r"^\| `(\w+)` \| `[^`]*` \| (`.*`) \|", run("ruby", "settings.rb").stdout, re.MULTILINE)
    ruby = {name: re.findall(r"`([^`]+)`", allowed.partition(" | ")[0]) for name, allowed in rows}
    shell = dict(
        re.findall(r"^  one_of (\w+) (.*)$", (FOLDER / "provision/lib.sh").read_text(), re.MULTILINE)
    )
    common = ruby.keys() & shell.keys()
    assert len(common) == 7
    assert {name: shell[name].split() for name in common} == {name: ruby[name] for name in common}


@pytest.mark.parametrize("name", ["Vagrantfile", "settings.rb"])
def test_ruby_reads_it(name):
    done = run("ruby", "-wc", name)
    assert (done.returncode, done.stderr) == (0, "")


def test_shellcheck_has_nothing_to_say():
    assert len(SCRIPTS) > 10
    done = run("shellcheck", "-x", *map(str, SCRIPTS))
    assert done.returncode == 0, done.stdout


def test_the_shipped_unit_is_one_systemd_takes(tmp_path):
    """Its program has to be there for that, so the text is checked with one that is."""
    unit = (ROOT / "pycni/agent/data/pycnid.service").read_text()
    assert "ExecStart=/usr/local/bin/pycnid run\n" in unit
    copy = tmp_path / "pycnid.service"
    copy.write_text(unit.replace("/usr/local/bin/pycnid", "/bin/true"))
    done = run("systemd-analyze", "verify", "--man=no", "--recursive-errors=no", str(copy))
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_units_that_scripts_write_are_ones_systemd_takes(tmp_path):
    found = 0
    for script in sorted(FOLDER.glob("provision/*.sh")):
        for name, text in re.findall(
            r"put /etc/systemd/system/(\S+) <<END\n(.*?)\nEND\n", script.read_text(), re.DOTALL
        ):
            copy = tmp_path / name
            copy.write_text(re.sub(r"ExecStart=.*", "ExecStart=/bin/true", text) + "\n")
            done = run("systemd-analyze", "verify", "--man=no", "--recursive-errors=no", str(copy))
            assert (done.returncode, done.stdout + done.stderr) == (0, ""), name
            found += 1
    assert found == 3


def test_a_report_of_hosts_has_one_screen_of_each_name_and_judges_backends():
    done = run(
        sys.executable, "-c", CLAIMS, PYTHONPATH=f"{FOLDER / 'provision'}:{ROOT}", PYCNI_SOURCE=str(ROOT)
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "screens": {"hosts_backends": [6, 5.0], "hosts_drain": [1, 1.0]},
        "claims": [
            [
                "udp against host-gw: throughput of one stream, as a share of the hosts' own",
                0.125,
                "<= 0.5",
                "yes",
            ],
            [
                "vxlan against host-gw: throughput of one stream, as a share of the hosts' own",
                0.5,
                ">= 0.7",
                "NO",
            ],
        ],
        "alone": [],
    }


CLAIMS = """
import json
from bench.model import Row, Screen
from report import claims, merged
def rows(backend, ratio):
    return [
        Row(question=f"{backend}: {what}, pod to pod against node to node", ours="", peer="x", ratio=ratio)
        for what in ("throughput of one stream", "round trip")
    ]
def screen(name, rows, took):
    return Screen(name=name, title="t", rows=rows, took_s=took)
found = merged([
    screen("hosts_backends", rows("udp", 0.1), 2.0), screen("hosts_drain", rows("a", 1.0)[:1], 1.0),
    screen("hosts_backends", rows("vxlan", 0.4), 2.0), screen("hosts_backends", rows("host-gw", 0.8), 1.0),
])
print(json.dumps({
    "screens": {item.name: [len(item.rows), item.took_s] for item in found},
    "claims": [[row.question, row.ratio, row.target, row.met] for row in claims(found[0].rows)],
    "alone": [row.question for row in claims(rows("vxlan", 0.4))],
}))
"""
