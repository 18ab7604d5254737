"""``pycnictl ui`` on a real lab, as people use it: in a headless Chromium, by mouse, by keyboard, in both themes."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from pycni.cli import parse
from pycni.lab.apply import Cluster
from pycni.lab.apply_commands import read
from pycni.lab.run import Lab
from pycni.lab.topology import LabSpec
from pycni.ui.graph import graph
from pycni.ui.source import source

from .browser import Browser
from .conftest import unique_name
from .lab_tools import COMMAND, ROOT, ctl_start

pytestmark = pytest.mark.timeout(240)
AXE = resources.files("axe_core_python").joinpath("axe.min.js")
CHECK = (
    "axe.run(document, {resultTypes: ['violations'], iframes: false}).then(r => JSON.stringify({rules: r.passes.length,"
    " violations: r.violations.map(v => [v.id, v.impact, v.nodes[0].html.slice(0, 200), v.nodes[0].failureSummary])}))"
)
DONE = "!!document.querySelector('#fault, #arrived')"


class View:
    """A page of a running ``pycnictl ui``."""

    def __init__(self, browser: Browser, url: str) -> None:
        self.browser, self.url = browser, url

    def fresh(self, scheme: str = "light", motion: str = "reduce") -> Browser:
        """The page anew, with nothing chosen, once it draws and counts. Without motion, which costs a processor."""
        self.browser.media(prefers_color_scheme=scheme, prefers_reduced_motion=motion)
        self.browser.console.clear()
        self.browser.go(self.url)
        self.browser.until(
            "document.querySelectorAll('.thing.pod').length > 0 && Number(document.body.dataset.samples) > 1"
        )
        return self.browser


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    made = Lab.up(
        LabSpec(name=unique_name(), nodes=2, pods=2, proxy="nftables", policy="nftables", bgp="exabgp")
    )
    try:
        for name in ("web", "policy"):
            Cluster(made).apply(read([str(ROOT / f"docs/examples/{name}.yaml")]))
        yield made
    finally:
        made.down()


@pytest.fixture(scope="module")
def url(lab: Lab) -> Iterator[str]:
    process = ctl_start("ui", "--name", lab.spec.name)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert "#token=" in line, line + process.stdout.read()
        assert process.stdout.readline() == "Ctrl-C ends it.\n"
        yield line.split()[-1]
    finally:
        process.send_signal(signal.SIGINT)
        rest = process.communicate(timeout=60)[0]
    assert process.returncode == 0
    assert rest == ""


@pytest.fixture(scope="module")
def view(url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[View]:
    with Browser(tmp_path_factory.mktemp("chromium")) as browser:
        yield View(browser, url)
        own = urlsplit(url).netloc
        asked = {urlsplit(one).netloc for one in browser.requests if one != "about:blank"}
        assert asked == {own}, "something left the origin"
        assert not [one for one in browser.requests if "token" in one.replace(url, "")], (
            "the token is in a request"
        )


def thing(name: str) -> str:
    return f'.thing[data-id="{name}"]'


def click(browser: Browser, *names: str) -> None:
    for name in names:
        browser.click(thing(name))


def hops(browser: Browser) -> list[dict[str, str]]:
    """Those the panel lists."""
    found = browser.run(
        "JSON.stringify([...document.querySelectorAll('.hop')].map(e => ({item: e.dataset.item, number: e.querySelector('.no').textContent,"
        " what: e.querySelector('b').textContent, fault: e.classList.contains('fault')})))"
    )
    return list(json.loads(found))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_shows_the_lab(view: View, lab: Lab, scheme: str) -> None:
    browser = view.fresh(scheme)
    shown = set(browser.run("[...document.querySelectorAll('.thing')].map(e => e.dataset.id)"))
    pods = {
        f"pod:{namespace or 'default'}/{name}"
        for pod in lab.pods()
        for name, _, namespace in [pod.name.partition(".")]
    }
    assert {name for name in shown if name.startswith("pod:")} == pods
    for node in ("node1", "node2"):
        assert {
            f"node:{node}",
            f"host:{node}",
            f"dev:{node}/eth0",
            f"dev:{node}/flannel.1",
            f"dev:{node}/cni0",
        } <= shown
    assert {"svc:shop/web", "tunnel:node1+node2/flannel.1", "peer:172.20.255.253", "underlay"} <= shown
    assert browser.run("document.title").startswith(f"lab {lab.spec.name}")
    assert "token" not in browser.run("location.href")
    background = browser.run("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", background))) < 200) is (scheme == "dark")
    assert browser.console == []


def test_two_clicks_trace_a_packet_and_draw_its_way(view: View) -> None:
    browser = view.fresh()
    click(browser, "pod:default/pod1", "pod:default/pod2")
    browser.until(DONE)
    assert browser.run("!!document.querySelector('#arrived')"), browser.run(
        "document.querySelector('#panel').textContent"
    )
    there = hops(browser)
    assert there[0]["item"] == "pod:default/pod1"
    assert there[-1]["item"] == "pod:default/pod2"
    assert [hop["number"] for hop in there] == [str(n) for n in range(1, len(there) + 1)]
    order = list(dict.fromkeys(hop["item"] for hop in there))
    assert order.index("dev:node1/cni0") < order.index("host:node1") < order.index("dev:node1/flannel.1")
    assert (
        order.index("dev:node1/flannel.1")
        < order.index("dev:node1/eth0")
        < order.index("dev:node2/flannel.1")
    )
    assert order.index("dev:node2/flannel.1") < order.index("host:node2") < order.index("dev:node2/cni0")
    # The drawing: a badge at each place with the numbers of its hops, the lines from pod to pod, the tunnel lit.
    badges = browser.run(
        "JSON.stringify([...document.querySelectorAll('.badge')].map(e => [e.dataset.at, e.dataset.hops]))"
    )
    at = [hop for place, numbers in json.loads(badges) for hop in [(place, int(n)) for n in numbers.split()]]
    assert at == [(hop["item"], int(hop["number"]) - 1) for hop in there]
    assert browser.run("!!document.querySelector('.edge.tunnel.used')")
    first, last = browser.run(
        "(() => { const p = document.querySelector('.way.there:not(.halo)'); const m = p.getScreenCTM();"
        " const at = l => { const q = p.getPointAtLength(l).matrixTransform(m); return [q.x, q.y]; };"
        " return [at(0), at(p.getTotalLength())]; })()"
    )
    for point, pod in ((first, "pod1"), (last, "pod2")):
        box = browser.run(
            f"(() => {{ const r = document.querySelector('{thing(f'pod:default/{pod}')} .shape').getBoundingClientRect();"
            " return [r.left, r.top, r.right, r.bottom]; })()"
        )
        assert box[0] - 8 <= point[0] <= box[2] + 8
        assert box[1] - 8 <= point[1] <= box[3] + 8
    browser.click("#side-back")
    back = hops(browser)
    assert (back[0]["item"], back[-1]["item"]) == ("pod:default/pod2", "pod:default/pod1")
    assert int(back[0]["number"]) == len(there) + 1
    assert browser.console == []


def test_a_denied_connection_names_its_policy_and_explains_it(view: View) -> None:
    browser = view.fresh()
    click(browser, "pod:default/pod1", "svc:shop/web")
    browser.until(DONE)
    assert browser.run("document.querySelector('#fault')?.dataset.kind") == "policy-denied"
    assert "NetworkPolicy shop/web" in browser.run("document.querySelector('#fault').textContent")
    assert browser.run("document.querySelector('.callout')?.dataset.fault") == "policy-denied"
    [fault] = [hop for hop in hops(browser) if hop["fault"]]
    assert fault["what"] == "policy"
    assert browser.run("[...document.querySelectorAll('.edge.backs')].length") == 3
    browser.click("#why")
    browser.until("document.querySelectorAll('#explain .verdict.denied').length > 0")
    assert "no rule of NetworkPolicy shop/web" in browser.run(
        "document.querySelector('#explain').textContent"
    )
    # The denied probe is on the map: at the node that denied it, and at the pod.
    browser.until(
        "[...document.querySelectorAll('.thing.host .drop')].some(e => e.textContent.includes('denied'))"
    )
    click(browser, "pod:shop/web-1")
    browser.until("document.querySelector('#policy')?.textContent.includes('shop/web')")
    words = browser.run("document.querySelector('#policy').textContent")
    assert "What no rule is about is denied" in words
    assert "pods role=front" in words
    assert browser.console == []


def test_damage_is_marked_and_the_trace_shows_where(view: View, lab: Lab) -> None:
    browser = view.fresh()
    entries = [
        line.split()
        for line in lab.exec("node1", ["bridge", "fdb", "show", "dev", "flannel.1"]).stdout.splitlines()
    ]
    [entry] = [words for words in entries if "dst" in words]
    change = ["bridge", "fdb", "del", entry[0], "dev", "flannel.1", "dst", entry[entry.index("dst") + 1]]
    with agent_stopped(lab, "node1"):
        lab.exec("node1", change)
        browser.until(
            f"document.querySelector('{thing('tunnel:node1+node2/flannel.1')}')?.dataset.state === 'bad'"
        )
        click(browser, "pod:default/pod1", "pod:default/pod2")
        browser.until(DONE)
        assert browser.run("document.querySelector('#fault')?.dataset.kind") == "fdb-missing"
        assert browser.run("document.querySelector('.callout')?.dataset.at") == "dev:node1/flannel.1"
        assert (
            browser.run("document.querySelector('#fault code').textContent")
            == "bridge fdb show dev flannel.1"
        )
        [fault] = [hop for hop in hops(browser) if hop["fault"]]
        assert fault["item"] == "dev:node1/flannel.1"
        assert "fault fdb-missing at node1" in browser.run("document.querySelector('#say').textContent")
    browser.until(
        f"document.querySelector('{thing('tunnel:node1+node2/flannel.1')}')?.dataset.state === 'ok'"
    )
    assert browser.console == []


def test_traffic_is_on_the_edges_it_passes(view: View, lab: Lab) -> None:
    browser = view.fresh(motion="no-preference")
    with lab.traffic("pod1", lab.pod("pod2").ips[0]):
        for edge in ("veth:default/pod1", "veth:default/pod2", "cable:node1/eth0", "inner:node2/flannel.1"):
            flow = f'.flow[data-edge="{edge}"]'
            browser.until(f"Number(document.querySelector('{flow}')?.dataset.rate) > 1000")
            assert browser.run(f"document.querySelector('{flow}').getAttribute('visibility')") == "visible"
        browser.until(f"!!document.querySelector('{thing('pod:default/pod1')} .rate')")
        moving = "document.getAnimations().filter(a => a.playState === 'running').length"
        assert browser.run(moving) > 0
        browser.media(prefers_reduced_motion="reduce")
        assert browser.run(moving) == 0
        browser.click("#view-tables")
        browser.until(
            "[...document.querySelectorAll('td.num')].some(e => /^[1-9].* .b.s$/.test(e.textContent))"
        )
    assert browser.console == []


def focus(browser: Browser) -> str:
    return str(browser.run("document.activeElement?.dataset?.id || document.activeElement?.id || ''"))


def walk(browser: Browser, to: str) -> None:
    """By arrow keys to a thing, as somebody would who sees where it is."""
    place = (
        "(id => { const e = [...document.querySelectorAll('.thing')].find(e => e.dataset.id === id);"
        " const r = e.querySelector('.shape').getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2]; })"
    )
    seen: list[str] = []
    while (here := focus(browser)) != to:
        assert len(seen) < 40, f"no way to {to}: {seen}"
        x, y = browser.run(f"{place}({json.dumps(here)})")
        goal_x, goal_y = browser.run(f"{place}({json.dumps(to)})")
        sideways = ("ArrowRight" if goal_x > x else "ArrowLeft", abs(goal_x - x))
        down = ("ArrowDown" if goal_y > y else "ArrowUp", abs(goal_y - y))
        keys = [key for key, far in sorted((sideways, down), key=lambda way: -way[1]) if far > 2]
        keys += [key for key in ("ArrowUp", "ArrowDown", "ArrowLeft", "ArrowRight") if key not in keys]
        for key in keys:
            browser.press(key)
            if focus(browser) != here and focus(browser) not in seen[-4:]:
                break
        seen.append(here)


def test_the_keyboard_is_enough(view: View) -> None:
    browser = view.fresh()
    for _ in range(20):
        browser.press("Tab")
        if focus(browser).startswith(("pod:", "node:")):
            break
    walk(browser, "pod:default/pod1")
    assert browser.run("getComputedStyle(document.activeElement.querySelector('.ring')).stroke") != "none", (
        "no visible focus"
    )
    browser.press("Enter")
    assert "default/pod1 is the source" in browser.run("document.querySelector('#say').textContent")
    assert browser.run("document.activeElement.getAttribute('aria-pressed')") == "true"
    walk(browser, "pod:default/pod2")
    browser.press("Enter")
    browser.until(DONE)
    assert browser.run("!!document.querySelector('#arrived')")
    assert "it arrives and its answer comes back" in browser.run("document.querySelector('#say').textContent")
    assert focus(browser) == "pod:default/pod2", "the focus was lost"
    for _ in range(60):
        browser.press("Tab")
        if browser.run("document.activeElement.classList.contains('hop')"):
            break
    assert "hop 1, node1, pod default/pod1, socket" in browser.run(
        "document.activeElement.getAttribute('aria-label')"
    )
    browser.press("Enter")
    assert browser.run("!!document.querySelector('.badge.lit')")
    browser.press("Escape")
    assert browser.run("document.querySelectorAll('.way').length") == 0
    assert "Nothing is chosen" in browser.run("document.querySelector('#say').textContent")
    assert browser.console == []


def test_a_trace_can_be_typed_and_a_wrong_one_is_told(view: View) -> None:
    browser = view.fresh()
    browser.run("document.querySelector('#from').focus()")
    browser.type("shop/web-1")
    browser.press("Tab")
    browser.type("pod2")
    browser.press("Enter")
    browser.until(DONE)
    assert hops(browser)[0]["item"] == "pod:shop/web-1"
    browser.run("document.querySelector('#to').select()")
    browser.type("nobody")
    browser.press("Enter")
    browser.until(
        "document.querySelector('#alarm').textContent.includes(\"'nobody': no pod, node, Service or address\")"
    )
    assert browser.run("document.querySelector('#alarm').hidden") is False
    assert all("400" in line for line in browser.console), browser.console


def _pod(browser: Browser) -> None:
    click(browser, "pod:shop/web-1")
    browser.until("!!document.querySelector('#policy .policies')")


def _trace(browser: Browser) -> None:
    click(browser, "pod:default/pod1", "pod:default/pod2")
    browser.until(DONE)


def _fault(browser: Browser) -> None:
    click(browser, "pod:default/pod1", "svc:shop/web")
    browser.until(DONE)
    browser.click("#why")
    browser.until("!!document.querySelector('#explain .verdict')")


def _hidden(browser: Browser) -> None:
    browser.click("#fold")
    browser.until("!!document.querySelector('.thing.pods')")


STATES: dict[str, Callable[[Browser], None]] = {
    "nothing chosen": lambda _: None,
    "a pod": _pod,
    "a trace": _trace,
    "a fault": _fault,
    "pods hidden": _hidden,
    "tables": lambda browser: browser.click("#view-tables"),
}


DARK = ("a pod", "a fault", "tables")
"""Between them they have every colour."""


@pytest.mark.parametrize(
    ("scheme", "states"), [("light", tuple(STATES)), ("dark", DARK)], ids=["light", "dark"]
)
def test_axe_finds_nothing_serious(view: View, scheme: str, states: tuple[str, ...]) -> None:
    browser = view.fresh(scheme)
    # By the protocol: the page's own policy lets no script of others in.
    browser.run(AXE.read_text() + "; 0")
    for name in states:
        browser.press("Escape")
        STATES[name](browser)
        found = json.loads(browser.run(CHECK))
        assert found["rules"] > 15
        serious = [item for item in found["violations"] if item[1] in {"serious", "critical"}]
        assert not serious, f"{scheme}, {name}: {serious}"
    assert browser.console == []


def test_pods_are_hidden_and_shown_by_node_and_a_trace_opens_what_it_needs(view: View) -> None:
    browser = view.fresh()
    browser.click("#fold")
    browser.until("document.querySelectorAll('.thing.pod').length === 0")
    click(browser, "pods:node2")
    browser.until("document.querySelectorAll('.thing.pod').length > 0")
    assert browser.run(f"!document.querySelector('{thing('pod:default/pod1')}')")
    browser.run(
        "document.querySelector('#from').value = 'pod1'; document.querySelector('#to').value = 'pod2'"
    )
    browser.click("#go")
    browser.until(DONE)
    browser.until(f"!!document.querySelector('{thing('pod:default/pod1')}')")
    assert browser.console == []


def test_the_theme_can_be_changed_and_is_remembered(view: View) -> None:
    browser = view.fresh("light")
    before = browser.run("getComputedStyle(document.body).backgroundColor")
    browser.click("#theme")
    dark = browser.run("getComputedStyle(document.body).backgroundColor")
    assert dark != before
    view.fresh("light")
    assert browser.run("getComputedStyle(document.body).backgroundColor") == dark
    browser.click("#theme")
    assert browser.run("getComputedStyle(document.body).backgroundColor") == before


def test_a_page_without_the_token_shows_nothing_and_says_why(url: str, tmp_path: Path) -> None:
    with Browser(tmp_path / "profile") as browser:
        browser.go(url.partition("#")[0])
        browser.until(
            "document.querySelector('#alarm').textContent.includes('Open the URL that pycnictl ui printed')"
        )
        assert browser.run("document.querySelectorAll('.thing').length") == 0
        assert browser.run("document.querySelector('#live').dataset.state") == "bad"


def test_it_listens_on_loopback_only_and_warns_elsewhere(lab: Lab, url: str) -> None:
    assert urlsplit(url).hostname == "127.0.0.1"
    # In a namespace of its own: nothing in the machine's listens beyond loopback for a test.
    process = subprocess.Popen(
        lab.exec_argv("node1", ["env", f"PYTHONPATH={ROOT}", *COMMAND, "ui", "--name", lab.spec.name, "--listen", "172.20.0.1"]),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        assert process.stderr is not None
        assert "#token=" in process.stdout.readline()
        assert "warning: others can reach this" in process.stderr.readline()
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    assert process.returncode == 0


def test_agents_alone_tell_the_same(lab: Lab) -> None:
    by_agents = source(parse(["ui", "--name", lab.spec.name, "--by-agents"]))
    directly = source(parse(["ui", "--name", lab.spec.name]))
    found = [
        graph(known.world, known.objects) for known in (one.eyes().gather() for one in (by_agents, directly))
    ]
    ids = [{one.id for one in (*each.items, *each.edges)} for each in found]
    assert ids[0] == ids[1]
    assert by_agents.counts().keys() == directly.counts().keys() >= {"node1/eth0", "node2/flannel.1"}
    assert [agent.node for agent in by_agents.agents()] == ["node1", "node2"]
    # On a node of a cluster: its own agent is asked, and says of the others why it cannot.
    own = source(parse(["ui", "--socket", by_agents.agents()[0].path]))
    assert own.title == "cluster of node1"
    assert {name.partition("/")[0] for name in own.counts()} == {"node1"}
    assert len(own.eyes().gather().world.silent) == 1


def test_a_lab_there_is_not_is_told(lab_name: str) -> None:
    process = ctl_start("ui", "--name", lab_name)
    told = process.communicate(timeout=60)[0]
    assert process.returncode == 1
    assert f"no lab {lab_name}" in told


@contextlib.contextmanager
def agent_stopped(lab: Lab, node: str) -> Iterator[None]:
    """Its agent repairs nothing meanwhile."""
    lab.signal_agent(node, signal.SIGSTOP)
    try:
        yield
    finally:
        lab.signal_agent(node, signal.SIGCONT)
