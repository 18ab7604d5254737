"""A folder of manifests as a source: what is in the store after which change, and what is said about it."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pycni.model.kube import ENDPOINT_SLICE, POD, SERVICE
from pycni.model.policy import CLUSTER_NETWORK_POLICY, NETWORK_POLICY
from pycni.sources import inotify
from pycni.sources.manifest_folder import ManifestFolder
from pycni.sources.manifests import GENERATION, KINDS, MANIFESTS, ManifestSource
from pycni.store import Store

PATIENCE_S = 5.0


def service(name: str, port: int = 80, **spec: object) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name},
        "spec": {"clusterIP": "10.96.0.1", "ports": [{"port": port}], **spec},
    }


def pod(name: str, ip: str, *, ready: bool = True) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": "web"}},
        "status": {
            "phase": "Running",
            "podIPs": [{"ip": ip}],
            "conditions": [{"type": "Ready", "status": str(ready)}],
        },
    }


def text(*objects: dict[str, Any]) -> str:
    return yaml.safe_dump_all(objects)


class Follower:
    """A running source and what it put."""

    def __init__(self, source: ManifestSource) -> None:
        self.store = Store()
        self.source = source

    def ports(self) -> dict[str, int]:
        found = self.store.snapshot().of(SERVICE)
        return {key.partition("/")[2]: item.ports[0].port for key, item in found.items()}

    async def until(self, condition: Callable[[], bool]) -> float:
        """Seconds until it holds."""
        started = time.monotonic()
        while not condition():
            assert time.monotonic() - started < PATIENCE_S, self.store.snapshot().objects
            await asyncio.sleep(0.001)
        return time.monotonic() - started


def follow(folder: Path, test: Callable[[Follower], Awaitable[None]], *, derive_slices: bool = False) -> None:
    async def run() -> None:
        follower = Follower(ManifestSource(folder, derive_slices=derive_slices))
        task = asyncio.create_task(follower.source.run(follower.store))
        try:
            await test(follower)
            assert not task.done()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    asyncio.run(run())


def test_what_is_there_at_the_start_is_listed(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(text(service("a"), service("b", 81)))
    (tmp_path / "c.json").write_text('{"apiVersion": "v1", "kind": "List", "items": []}')
    (tmp_path / "d.yml").write_text(text({"apiVersion": "v1", "kind": "List", "items": [service("d", 83)]}))
    (tmp_path / "notes.txt").write_text("not a manifest")
    (tmp_path / "sub.yaml").mkdir()

    async def test(found: Follower) -> None:
        await found.until(lambda: found.ports() == {"a": 80, "b": 81, "d": 83})
        assert found.store.snapshot().listed == set(KINDS)

    follow(tmp_path, test)


@pytest.mark.parametrize("blind", [False, True], ids=["told by inotify", "where inotify tells nothing"])
def test_changes_arrive(tmp_path: Path, blind: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if blind:  # as on a network file system: the watch can be had, and is never told
        monkeypatch.setattr(inotify.Watch, "read", lambda _self: os.read(_self.fd, 65536) and [])
        monkeypatch.setattr(inotify, "reports", lambda _folder: False)

    async def test(found: Follower) -> None:
        await found.until(lambda: SERVICE in found.store.snapshot().listed)
        steps: list[tuple[str, Callable[[], object], dict[str, int]]] = [
            ("written", lambda: (tmp_path / "a.yaml").write_text(text(service("a"))), {"a": 80}),
            ("changed", lambda: (tmp_path / "a.yaml").write_text(text(service("a", 81))), {"a": 81}),
            ("renamed", lambda: (tmp_path / "a.yaml").rename(tmp_path / "b.yaml"), {"a": 81}),
            ("put in place", lambda: _put(tmp_path / "b.yaml", text(service("b"))), {"b": 80}),
            ("removed", (tmp_path / "b.yaml").unlink, {}),
        ]
        took = []
        for _name, step, expected in steps:
            await asyncio.sleep(0.02)
            step()
            took.append(await found.until(lambda expected=expected: found.ports() == expected))
        print(", ".join(f"{seconds * 1000:.0f} ms" for seconds in took))

    follow(tmp_path, test)


def _put(file: Path, content: str) -> None:
    temporary = file.with_name(".new")
    temporary.write_text(content)
    temporary.rename(file)


def test_the_number_of_a_change_never_comes_before_what_was_changed(tmp_path: Path) -> None:
    async def test(found: Follower) -> None:
        for number in range(1, 40):
            for name in ("a", "b", "c"):
                _put(tmp_path / f"{name}.yaml", text(service(name, number)))
            _put(tmp_path / ".generation", f"{number}\n")
            await found.until(lambda n=number: found.store.snapshot().of(GENERATION).get(MANIFESTS) == n)
            assert found.ports() == dict.fromkeys("abc", number)

    follow(tmp_path, test)


def test_a_missing_folder_is_waited_for_and_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "later"

    async def test(found: Follower) -> None:
        await asyncio.sleep(0.3)
        assert found.store.snapshot().listed == frozenset()
        folder.mkdir()
        (folder / "a.yaml").write_text(text(service("a")))
        await found.until(lambda: found.ports() == {"a": 80})

    with caplog.at_level(logging.INFO):
        follow(folder, test)
    assert [record.getMessage() for record in caplog.records if record.name == "pycni.manifests"] == [
        f"manifests: waiting for {folder}: No such file or directory",
        f"manifests: {folder} is there now",
    ]


def test_what_was_in_a_folder_that_vanishes_stays(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    (folder / "a.yaml").write_text(text(service("a")))

    async def test(found: Follower) -> None:
        await found.until(lambda: found.ports() == {"a": 80})
        folder.rename(tmp_path / "away")
        await asyncio.sleep(0.3)
        assert found.ports() == {"a": 80}
        folder.mkdir()
        (folder / "b.yaml").write_text(text(service("b")))
        await found.until(lambda: found.ports() == {"b": 80})

    follow(folder, test)
    assert "No such file or directory; what was in it stays" in caplog.text


@pytest.mark.parametrize(
    ("content", "said"),
    [
        pytest.param("{", "a.yaml: document 1='{': is not YAML", id="half a file"),
        pytest.param(
            text(service("a", 85)) + "---\nkind: [",
            "a.yaml: document 2='kind: [': is not YAML",
            id="half a document",
        ),
        pytest.param(
            text(service("a", 85), service("b", "http")),  # type: ignore[arg-type]
            "a.yaml document 2: Service default/b: spec.ports[0].port='http'",
            id="wrong field",
        ),
        pytest.param("- 1\n", "a.yaml document 1: document=[1]: expected an object", id="no object"),
        pytest.param("a: 1\n", "a.yaml document 1: kind=None: expected the kind of an object", id="no kind"),
        pytest.param("a: \x00\n", "a.yaml: document 1=", id="binary"),
        pytest.param("a: &a [*a]\n", "a.yaml document 1: kind=None", id="a loop"),
        pytest.param("[" * 5000, "a.yaml: document 1=", id="too deep"),
    ],
)
def test_a_malformed_file_keeps_its_last_good_objects_and_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: str, said: str
) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(text(service("a"), service("b", 81)))

    async def test(found: Follower) -> None:
        await found.until(lambda: found.ports() == {"a": 80, "b": 81})
        file.write_text(content)
        (tmp_path / "c.yaml").write_text(text(service("c", 82)))
        await found.until(lambda: found.ports() == {"a": 80, "b": 81, "c": 82} and bool(caplog.messages))
        (tmp_path / "c.yaml").write_text(text(service("c", 83)))
        await found.until(lambda: found.ports() == {"a": 80, "b": 81, "c": 83})
        file.write_text(text(service("a", 90)))
        await found.until(lambda: found.ports() == {"a": 90, "c": 83})

    follow(tmp_path, test)
    (message,) = caplog.messages
    assert said in message
    assert "its last good content (2 objects) stays" in message


def test_a_file_being_written_is_not_read_before_it_is_finished(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"

    async def test(found: Follower) -> None:
        file.write_text(text(service("a"), service("b", 81)))
        await found.until(lambda: found.ports() == {"a": 80, "b": 81})
        seen = set()
        with file.open("w") as writing:
            writing.write(text(service("a", 82)))  # for itself a good file: but b is still to come
            writing.flush()
            for n in range(20):
                (tmp_path / "c.yaml").write_text(text(service("c", 100 + n)))
                await asyncio.sleep(0.02)
                seen |= {(port := found.ports()).get("a"), port.get("b")}
            writing.write("---\n" + text(service("b", 83)))
        await found.until(lambda: found.ports().get("b") == 83)
        assert seen == {80, 81}

    follow(tmp_path, test)


def test_without_being_told_a_young_file_is_read_once_it_rests(tmp_path: Path) -> None:
    folder = ManifestFolder(tmp_path)
    (tmp_path / "old.yaml").write_text(text(service("old")))
    os.utime(tmp_path / "old.yaml", (1, 1))
    (tmp_path / "young.yaml").write_text(text(service("young")))
    first = folder.look()
    assert (list(first.objects[SERVICE]), first.pending) == (["default/old"], True)
    time.sleep(0.06)
    second = folder.look()
    assert (list(second.objects[SERVICE]), second.pending) == (["default/old", "default/young"], False)


def test_of_an_object_in_two_files_the_first_file_counts(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "b.yaml").write_text(text(service("a", 81), service("a", 82)))

    async def test(found: Follower) -> None:
        await found.until(lambda: found.ports() == {"a": 81})
        (tmp_path / "a.yaml").write_text(text(service("a", 80)))
        await found.until(lambda: found.ports() == {"a": 80})
        (tmp_path / "a.yaml").unlink()
        await found.until(lambda: found.ports() == {"a": 81})

    follow(tmp_path, test)
    assert [message.partition(": ")[2] for message in caplog.messages] == [
        "b.yaml document 2: Service default/a is in it twice: the first counts",
        "b.yaml: Service default/a is in a.yaml already: that one counts",
    ]


@pytest.mark.parametrize(
    "name", [".a.yaml.swp", ".#a.yaml", "#a.yaml#", "a.yaml~", ".a.yaml", "4913", "a.yaml.bak"]
)
def test_what_editors_leave_is_no_manifest(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(text(service("a")))
    assert ManifestFolder(tmp_path).look({name}).objects == {}


def test_a_folder_mounted_from_a_config_map_is_followed(tmp_path: Path) -> None:
    """Kubernetes swaps the link ``..data``; the files are links through it."""
    for number in (1, 2):
        (tmp_path / f"..version{number}").mkdir()
        (tmp_path / f"..version{number}" / "a.yaml").write_text(text(service("a", 80 + number)))
    (tmp_path / "..data").symlink_to("..version1")
    (tmp_path / "a.yaml").symlink_to("..data/a.yaml")

    async def test(found: Follower) -> None:
        await found.until(lambda: found.ports() == {"a": 81})
        (tmp_path / "..new").symlink_to("..version2")
        (tmp_path / "..new").rename(tmp_path / "..data")
        await found.until(lambda: found.ports() == {"a": 82})

    follow(tmp_path, test)


def test_other_kinds_in_the_folder_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    other = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"}}
    (tmp_path / "a.yaml").write_text(text(other, service("a")))

    async def test(found: Follower) -> None:
        await found.until(lambda: found.ports() == {"a": 80})

    follow(tmp_path, test)
    assert caplog.messages == []


def test_slices_are_derived_where_nobody_gives_them(tmp_path: Path) -> None:
    selecting = service("web", selector={"app": "web"})
    (tmp_path / "a.yaml").write_text(text(selecting, pod("p1", "10.0.0.1"), service("bare")))

    async def test(found: Follower) -> None:
        def endpoints() -> list[tuple[str, bool]]:
            slices = found.store.snapshot().of(ENDPOINT_SLICE).values()
            return [(entry.address, entry.ready) for item in slices for entry in item.endpoints]

        await found.until(lambda: endpoints() == [("10.0.0.1", True)])
        (item,) = found.store.snapshot().of(ENDPOINT_SLICE).values()
        assert abs(item.changed - time.time()) < 60
        (tmp_path / "b.yaml").write_text(text(service("another", 81)))
        await found.until(lambda: "another" in found.ports())
        assert list(found.store.snapshot().of(ENDPOINT_SLICE).values()) == [item], "no change, no new time"
        (tmp_path / "c.yaml").write_text(text(pod("p2", "10.0.0.2", ready=False)))
        await found.until(lambda: endpoints() == [("10.0.0.1", True), ("10.0.0.2", False)])
        given_slice = {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {"name": "mine", "labels": {"kubernetes.io/service-name": "web"}},
            "addressType": "IPv4",
            "endpoints": [{"addresses": ["10.9.9.9"]}],
        }
        (tmp_path / "d.yaml").write_text(text(given_slice))
        await found.until(lambda: endpoints() == [("10.9.9.9", True)])

    follow(tmp_path, test, derive_slices=True)


def test_without_the_option_no_slices_are_derived(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(text(service("web", selector={"app": "web"}), pod("p", "10.0.0.1")))

    async def test(found: Follower) -> None:
        await found.until(lambda: len(found.store.snapshot().of(POD)) == 1)
        assert found.store.snapshot().of(ENDPOINT_SLICE) == {}

    follow(tmp_path, test)


def test_kinds_of_another_source_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(text(service("a"), pod("p", "10.0.0.1")))

    async def run() -> Store:
        store = Store()
        store.put(POD, "default/other", "another source's")
        task = asyncio.create_task(ManifestSource(tmp_path, [SERVICE]).run(store))
        while SERVICE not in store.snapshot().listed:
            await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return store

    found = asyncio.run(run()).snapshot()
    assert dict(found.of(POD)) == {"default/other": "another source's"}
    assert found.listed == {SERVICE}


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 3)), max_size=8),
    st.permutations([0, 1, 2]),
)
def test_the_order_in_which_files_come_does_not_matter(
    tmp_path_factory: pytest.TempPathFactory, objects: list[tuple[str, int]], order: list[int]
) -> None:
    contents = {
        f"{number}.yaml": text(*(service(name, port) for name, port in objects[number::3]))
        for number in order
    }
    listings = []
    for names in (sorted(contents), list(contents)):
        path = tmp_path_factory.mktemp("m")
        folder = ManifestFolder(path)
        for name in names:
            (path / name).write_text(contents[name])
            found = folder.look({name})
        listings.append(found.objects)
    assert listings[0] == listings[1]


def test_file_systems_of_this_machine_report_changes_and_others_do_not() -> None:
    assert inotify.reports("/dev/shm")
    assert inotify.file_system("/proc/self") == "proc"
    assert not inotify.reports("/proc")


def test_policies_are_there_before_the_pods_they_are_about(tmp_path: Path) -> None:
    meta = {"name": "deny"}
    subject = {"tier": "Admin", "priority": 1, "subject": {"namespaces": {}}}
    (tmp_path / "a.yaml").write_text(
        text(
            pod("p", "10.0.0.1"),
            {"apiVersion": "networking.k8s.io/v1", "kind": NETWORK_POLICY, "metadata": meta},
            {
                "apiVersion": "policy.networking.k8s.io/v1alpha2",
                "kind": CLUSTER_NETWORK_POLICY,
                "metadata": meta,
                "spec": subject,
            },
        )
    )
    seen: list[tuple[int, int, int]] = []

    async def test(found: Follower) -> None:
        def note() -> None:
            held = found.store.snapshot()
            seen.append(tuple(len(held.of(kind)) for kind in (NETWORK_POLICY, CLUSTER_NETWORK_POLICY, POD)))

        found.store.subscribe(note)
        await found.until(lambda: POD in found.store.snapshot().listed)

    follow(tmp_path, test)
    assert seen[-1] == (1, 1, 1)
    assert not [each for each in seen if each[2] and each[:2] != (1, 1)]
