"""Nodes that are User-Mode Linux guests: the same commands, each node with a kernel of its own."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address
from pathlib import Path

import pytest

from pycni.errors import KernelError
from pycni.lab import inside, processes
from pycni.lab.checks import Check
from pycni.lab.probe import KINDS
from pycni.lab.run import Lab
from pycni.lab.stations import Host
from pycni.model.family import Family

from .lab_tools import COMMAND, ctl, environment, within


def run(lab: Lab, target: str, script: str) -> str:
    return lab.exec(target, ["sh", "-c", script]).stdout.strip()


def test_every_check_passes_in_both_families(uml_lab: Lab) -> None:
    matrix = uml_lab.matrix()
    assert matrix.failed() == []
    assert len(matrix.reasons) == (4 * 3 + 2 * 2 * 4) * 4 * 2


def test_a_guest_with_no_checks_of_its_own_answers_the_others(uml_lab: Lab) -> None:
    hosts = [
        Host(node.name, "", {family: str(own.ip) for family, own in node.addresses.items()}, 1500, node.name)
        for node in uml_lab.nodes()
    ]
    checks = [Check("node2", "node1", family, kind) for family in Family for kind in KINDS]
    with uml_lab.driver.probes(hosts, 2.0) as probes:
        assert probes.run(checks) == dict.fromkeys(checks, "")


def test_each_node_has_a_kernel_of_its_own_with_ipvs(uml_lab: Lab) -> None:
    boots = [run(uml_lab, node, "cat /proc/sys/kernel/random/boot_id") for node in ("node1", "node2")]
    assert len({*boots, processes.boot_id()}) == 3
    assert run(uml_lab, "node1", "modprobe ip_vs_mh && lsmod | grep -c ^ip_vs_mh") == "1"
    add = "ipvsadm -A -t 10.96.0.9:80 -s mh && ipvsadm -Ln | grep -c 10.96.0.9:80 && ipvsadm -C"
    assert run(uml_lab, "node1", add) == "1"
    assert run(uml_lab, "node1", "hostname") == "node1"
    assert "172.20.0.1/16" in run(uml_lab, "node1", "ip -br address show dev eth0")
    # The command server's own link is nobody's business.
    links = json.loads(run(uml_lab, "node1", "ip -j link"))
    assert {link["ifname"] for link in links if not link["ifname"].startswith("veth")} == {
        "lo",
        "eth0",
        "flannel.1",
        "flannel-v6.1",
        "cni0",
    }


def test_the_machines_files_can_be_read_and_not_written(uml_lab: Lab) -> None:
    done = uml_lab.exec("node1", ["touch", "/etc/pyt-uml"], check=False)
    assert "Read-only file system" in done.stderr
    there = Path(__file__)
    assert run(uml_lab, "node1", f"wc -c < {there}") == str(there.stat().st_size)
    name = f"pyt{os.getpid()}-private"
    for folder in ("/tmp", "/run", "/var/lib"):
        run(uml_lab, "node1", f"touch {folder}/{name}")
        assert not Path(folder, name).exists()
        assert uml_lab.exec("node2", ["test", "-e", f"{folder}/{name}"], check=False).returncode == 1


def test_iptables_is_the_one_that_works_on_that_kernel(uml_lab: Lab) -> None:
    for program in ("iptables", "ip6tables"):
        script = (
            f"{program} -t nat -A POSTROUTING -j MASQUERADE && {program}-save -t nat && {program} -t nat -F"
        )
        assert "-A POSTROUTING -j MASQUERADE" in run(uml_lab, "node1", script)


def test_a_pod_added_and_removed_leaves_nothing(uml_lab: Lab) -> None:
    name = uml_lab.spec.name
    look = "ip -br link; ip netns; find /run/pycni-node/networks -name '10.*' -o -name 'fd*'"
    before = run(uml_lab, "node2", look)
    done = ctl("lab", "pod", "add", "--name", name, "--node", "node2", "web", "--json")
    assert done.returncode == 0, done.stderr
    pod = json.loads(done.stdout)
    assert (pod["name"], pod["node"], len(pod["ips"])) == ("web", "node2", 2)
    assert pod["ips"][0] in run(uml_lab, "web", "ip address show dev eth0")
    assert run(uml_lab, "node2", look) != before
    again = ctl("lab", "pod", "add", "--name", name, "--node", "node1", "web")
    assert (again.returncode, again.stderr) == (2, f"pycnictl: lab {name} has a pod web already\n")
    assert uml_lab.matrix().ok
    assert ctl("lab", "pod", "rm", "--name", name, "web").stdout == "web: removed\n"
    assert within(10, lambda: run(uml_lab, "node2", look) == before)


def test_a_commands_streams_and_end_are_its_own(uml_lab: Lab) -> None:
    name = uml_lab.spec.name
    script = "cat; echo warning >&2; exit 7"
    done = ctl("lab", "exec", "--name", name, "--json", "pod1", "--", "sh", "-c", script)
    assert json.loads(done.stdout) == {"exit": 7, "stdout": "", "stderr": "warning\n"}
    assert ctl("lab", "exec", "--name", name, "node1", "--", "sh", "-c", "kill -9 $$").returncode == -9
    missing = ctl("lab", "exec", "--name", name, "node1", "--", "pyt-no-such")
    assert (missing.returncode, missing.stderr) == (127, "pyt-no-such: No such file or directory\n")
    sent = os.urandom(3_000_000)
    words = uml_lab.exec_argv("pod2", ["cat"])
    echoed = subprocess.run(words, input=sent, capture_output=True, check=True, timeout=30)
    assert echoed.stdout == sent


def test_a_program_that_does_not_read_can_be_interrupted(uml_lab: Lab) -> None:
    words = uml_lab.exec_argv("node1", ["sleep", "600"])
    with subprocess.Popen(words, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as client:
        assert client.stdin
        client.stdin.write(bytes(50_000))
        client.stdin.flush()
        assert within(10, lambda: run(uml_lab, "node1", "pgrep -cx sleep || true") == "1")
        client.send_signal(signal.SIGINT)
        assert client.wait(10) == -signal.SIGINT
    assert within(10, lambda: run(uml_lab, "node1", "pgrep -cx sleep || true") == "0")


def test_a_program_dies_with_its_client(uml_lab: Lab) -> None:
    with subprocess.Popen(uml_lab.exec_argv("pod1", ["sleep", "600"])) as client:
        assert within(10, lambda: run(uml_lab, "node1", "pgrep -cx sleep || true") == "1")
        client.kill()
    assert within(10, lambda: run(uml_lab, "node1", "pgrep -cx sleep || true") == "0")


def test_a_program_ends_with_its_pod(uml_lab: Lab) -> None:
    uml_lab.add_pod("node1", "busy")
    with subprocess.Popen(uml_lab.exec_argv("busy", ["sleep", "600"])) as client:
        assert within(10, lambda: run(uml_lab, "node1", "pgrep -cx sleep || true") == "1")
        uml_lab.remove_pod("busy")
        assert client.wait(10) == -signal.SIGKILL


def test_a_person_gets_a_terminal(uml_lab: Lab) -> None:
    main, side = pty.openpty()
    words = ["lab", "exec", "--name", uml_lab.spec.name, "pod1", "--", "sh"]
    with subprocess.Popen(
        [*COMMAND, *words], stdin=side, stdout=side, stderr=side, env=environment(), start_new_session=True
    ) as shell:
        os.close(side)
        output = b""
        while not output.endswith(b"# "):
            output += os.read(main, 4096)
        os.write(main, b"tty && echo at-a-$((40+2)); exit 3\n")
        while chunk := _read(main):
            output += chunk
        os.close(main)
        assert shell.wait(10) == 3
    assert b"/dev/pts/" in output
    assert b"at-a-42" in output


def _read(fd: int) -> bytes:
    try:
        return os.read(fd, 4096)
    except OSError:  # the other side is closed
        return b""


def test_many_commands_run_at_once(uml_lab: Lab) -> None:
    with ThreadPoolExecutor(12) as pool:
        found = list(pool.map(lambda n: run(uml_lab, f"pod{n % 4 + 1}", f"sleep 0.5; echo {n}"), range(12)))
    assert found == [str(n) for n in range(12)]


def test_errors_inside_come_home_as_they_were(uml_lab: Lab) -> None:
    with pytest.raises(KernelError, match="create network namespace pycni-guest: EEXIST") as caught:
        uml_lab.driver.call("node1", inside.make_namespace, "pycni-guest")
    assert caught.value.errno == 17
    assert uml_lab.driver.call("node1", inside.mtu_of, "", "eth0") == 1500
    assert uml_lab.driver.call("node1", inside.mtu_of, "", "no-such") == 0


@pytest.mark.parametrize("family", list(Family), ids=lambda family: family.label)
def test_no_packet_is_lost_while_an_agent_is_killed_and_replaced(uml_lab: Lab, family: Family) -> None:
    source, target = uml_lab.pod("pod1"), uml_lab.pod("pod2")
    assert (source.node, target.node) == ("node1", "node2")
    before = run(uml_lab, "node1", "pgrep -f [p]ycni.agent.main")
    with uml_lab.traffic("pod1", target.ips[0 if family is Family.V4 else 1], 0.01) as traffic:
        assert traffic.wait_answered(10)
        uml_lab.signal_agent("node1", signal.SIGKILL)
        assert uml_lab.agent("node1") is None
        assert run(uml_lab, "node1", "pgrep -f [p]ycni.agent.main || true") == ""
        assert traffic.wait_answered(20)
        uml_lab.start_agent("node1")
        assert traffic.wait_answered(20)
    report = traffic.report()
    assert report.lost == 0
    assert report.sent >= 50
    assert run(uml_lab, "node1", "pgrep -f [p]ycni.agent.main") != before
    assert ip_address(target.ips[0]).version == 4


def test_traffic_sees_what_is_lost(uml_lab: Lab) -> None:
    rule = "INPUT -p icmp --icmp-type echo-request -m statistic --mode nth --every 4 --packet 0 -j DROP"
    target = uml_lab.node("node2").addresses[Family.V4].ip
    run(uml_lab, "node2", f"iptables -A {rule}")
    try:
        with uml_lab.traffic("node1", str(target), 0.005) as traffic:
            assert traffic.wait_answered(60, 20)
    finally:
        run(uml_lab, "node2", f"iptables -D {rule}")
    report = traffic.report()
    assert report.lost == pytest.approx(report.sent / 4, abs=2)


def test_a_stopped_agent_goes_on_when_told_to(uml_lab: Lab) -> None:
    uml_lab.signal_agent("node1", signal.SIGSTOP)
    assert not uml_lab.node("node1").readiness().ready
    uml_lab.signal_agent("node1", signal.SIGCONT)
    assert within(10, lambda: uml_lab.node("node1").readiness().ready)
    assert uml_lab.agent("node1") is not None


def test_udp_dropped_in_one_node_fails_the_matrix_naming_its_pairs(uml_lab: Lab) -> None:
    run(uml_lab, "node2", "iptables -A FORWARD -p udp -j DROP")
    try:
        matrix = uml_lab.matrix(3.0)
    finally:
        run(uml_lab, "node2", "iptables -D FORWARD -p udp -j DROP")
    there = {pod.name for pod in uml_lab.pods() if pod.node == "node2"}
    failed = [check for check, _reason in matrix.failed()]
    assert {(check.family, check.kind) for check in failed} == {(Family.V4, "udp")}
    assert ("node1", min(there)) in {(check.source, check.target) for check in failed}
    assert all(there & {check.source, check.target} for check in failed)
    assert set(dict(matrix.failed()).values()) == {"no answer within 3 s"}
    assert uml_lab.matrix().ok


def test_the_kernels_nftables_families_are_told_apart(uml_lab: Lab) -> None:
    script = "from pycni.kernel.nft import Nft; n = Nft(); print(n.knows('inet'), n.knows('bridge'))"
    words = [sys.executable, "-c", script]
    done = subprocess.run(
        uml_lab.exec_argv("node1", words), capture_output=True, text=True, check=True, env=environment()
    )
    assert done.stdout == "False True\n"


def test_the_agent_says_once_that_its_kernel_cannot_hold_its_table(uml_lab: Lab) -> None:
    log = uml_lab.node("node2").log.read_text()
    assert log.count("no family inet (NF_TABLES_INET)") == 1
    assert "ERROR" not in log


def test_an_empty_command_is_refused(uml_lab: Lab) -> None:
    done = subprocess.run(uml_lab.exec_argv("node1", []), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (255, "the guest at 169.254.1.2 does not answer: no command\n")
