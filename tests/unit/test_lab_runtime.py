"""The mini libcni against plugins that write down how they were called."""

from __future__ import annotations

import base64
import json
import stat
from pathlib import Path
from typing import Any

import pytest

from pycni.errors import CniError
from pycni.lab.conflist import parse_list
from pycni.lab.runtime import Attachment, CniRuntime, PluginError, load_list

PLUGIN = """#!/bin/sh
name=$(basename "$0")
n=$(ls "{log}" | wc -l)
file="{log}/$(printf %03d "$n")"
{{ env | grep ^CNI_ | sort; echo "type=$name"; echo; cat; }} > "$file"
if [ -e "{bin}/$name.fail.$CNI_COMMAND" ]; then cat "{bin}/$name.fail.$CNI_COMMAND"; exit 1; fi
case $CNI_COMMAND in
ADD) echo '{{"cniVersion":"1.1.0","ips":[{{"address":"10.0.0.2/24"}}],"by":"'"$name"'"}}';;
VERSION) echo '{{"cniVersion":"1.1.0","supportedVersions":["1.0.0","1.1.0"]}}';;
esac
"""


class World:
    """A folder of recording plugins and a runtime that uses them."""

    def __init__(self, folder: Path) -> None:
        self.bin, self.log, self.cache = folder / "bin", folder / "log", folder / "cache"
        self.bin.mkdir()
        self.log.mkdir()
        for name in ("one", "two"):
            file = self.bin / name
            file.write_text(PLUGIN.format(log=self.log, bin=self.bin))
            file.chmod(0o755)

    def runtime(self, version: str = "1.1.0", **extra: Any) -> CniRuntime:
        plugins = [{"type": "one", "capabilities": {"ips": True}}, {"type": "two"}]
        raw = json.dumps({"cniVersion": version, "name": "net", "plugins": plugins, **extra}).encode()
        return CniRuntime(parse_list(raw), cache_dir=self.cache, path=(str(self.bin),))

    def fail(self, name: str, command: str, text: str) -> None:
        (self.bin / f"{name}.fail.{command}").write_text(text)

    def calls(self) -> list[tuple[str, dict[str, str], dict[str, Any]]]:
        """(command plugin, environment, stdin) of every call so far."""
        found = []
        for file in sorted(self.log.iterdir()):
            head, _, stdin = file.read_text().partition("\n\n")
            environment = dict(line.split("=", 1) for line in head.splitlines())
            found.append(
                (f"{environment['CNI_COMMAND']} {environment['type']}", environment, json.loads(stdin))
            )
        return found

    def sequence(self) -> list[str]:
        return [call[0] for call in self.calls()]


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


POD = Attachment(
    "c1", "/run/netns/x", "eth0", {"K8S_POD_NAME": "p", "IgnoreUnknown": "1"}, {"ips": ["10.0.0.9"]}
)


def test_add_chains_results_and_caches_the_last(world: World) -> None:
    outcome = world.runtime().add(POD)
    first, second = world.calls()
    assert world.sequence() == ["ADD one", "ADD two"]
    assert first[1] == {
        "CNI_COMMAND": "ADD",
        "CNI_CONTAINERID": "c1",
        "CNI_NETNS": "/run/netns/x",
        "CNI_IFNAME": "eth0",
        "CNI_ARGS": "K8S_POD_NAME=p;IgnoreUnknown=1",
        "CNI_PATH": str(world.bin),
        "type": "one",
    }
    assert first[2]["runtimeConfig"] == {"ips": ["10.0.0.9"]}
    assert "prevResult" not in first[2]
    assert second[2]["prevResult"]["by"] == "one"
    assert "runtimeConfig" not in second[2]
    assert outcome.result is not None
    assert outcome.result["by"] == "two"
    assert [call.plugin for call in outcome.calls] == ["one", "two"]
    assert outcome.seconds > 0


def test_the_cache_has_libcnis_form_and_modes(world: World) -> None:
    world.runtime().add(POD)
    file = world.cache / "results" / "net-c1-eth0"
    value = json.loads(file.read_bytes())
    assert json.loads(base64.b64decode(value.pop("config")))["name"] == "net"
    assert value == {
        "kind": "cniCacheV1",
        "containerId": "c1",
        "ifName": "eth0",
        "networkName": "net",
        "netns": "/run/netns/x",
        "cniArgs": [["K8S_POD_NAME", "p"], ["IgnoreUnknown", "1"]],
        "capabilityArgs": {"ips": ["10.0.0.9"]},
        "result": {"cniVersion": "1.1.0", "ips": [{"address": "10.0.0.2/24"}], "by": "two"},
    }
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700


def test_delete_goes_backwards_with_the_cached_result_and_forgets_it(world: World) -> None:
    runtime = world.runtime()
    runtime.add(POD)
    runtime.delete(Attachment("c1", "", "eth0"))
    assert world.sequence()[2:] == ["DEL two", "DEL one"]
    two, one = world.calls()[2:]
    assert two[2]["prevResult"]["by"] == one[2]["prevResult"]["by"] == "two"
    assert one[2]["runtimeConfig"] == {"ips": ["10.0.0.9"]}, "capability arguments come from the cache"
    assert one[1]["CNI_NETNS"] == ""
    assert runtime.cached() == []


@pytest.mark.parametrize("content", [None, b"", b"{", b"[]", b'{"kind":"x"}'], ids=lambda c: repr(c)[:12])
def test_delete_manages_without_a_good_cache_file(world: World, content: bytes | None) -> None:
    runtime = world.runtime()
    if content is not None:
        file = runtime.cache_file("c1", "eth0")
        file.parent.mkdir(parents=True)
        file.write_bytes(content)
    runtime.delete(POD)
    assert world.sequence() == ["DEL two", "DEL one"]
    assert all("prevResult" not in call[2] for call in world.calls())
    assert not runtime.cache_file("c1", "eth0").exists()


def test_before_0_4_0_delete_has_no_prev_result_and_check_is_refused(world: World) -> None:
    runtime = world.runtime("0.3.1")
    runtime.add(POD)
    runtime.delete(POD)
    assert all("prevResult" not in call[2] for call in world.calls() if call[0].startswith("DEL"))
    with pytest.raises(CniError, match=r"0\.4\.0"):
        runtime.check(POD)


def test_a_failed_add_is_undone_and_tells_the_plugins_error(world: World) -> None:
    world.fail("two", "ADD", '{"cniVersion":"1.1.0","code":11,"msg":"later","details":"no lease"}')
    with pytest.raises(PluginError, match="two ADD failed with code 11: later: no lease") as caught:
        world.runtime().add(POD)
    assert caught.value.code == 11
    assert world.sequence() == ["ADD one", "ADD two", "DEL two", "DEL one"]
    assert not world.runtime().cached()


def test_a_failing_undo_is_told_too(world: World) -> None:
    world.fail("two", "ADD", '{"code":5,"msg":"a"}')
    world.fail("two", "DEL", '{"code":5,"msg":"b"}')
    with pytest.raises(PluginError) as caught:
        world.runtime().add(POD)
    assert caught.value.__notes__ == ["and the DEL after it: two DEL failed with code 5: b"]


def test_a_failed_delete_keeps_the_cache_for_another_try(world: World) -> None:
    runtime = world.runtime()
    runtime.add(POD)
    world.fail("one", "DEL", '{"code":11,"msg":"later"}')
    with pytest.raises(PluginError):
        runtime.delete(POD)
    assert len(runtime.cached()) == 1


@pytest.mark.parametrize(
    "output", ["", "oops", "[]", '{"msg":"x"}'], ids=["nothing", "text", "list", "no code"]
)
def test_an_exit_without_an_error_object_is_code_999(world: World, output: str) -> None:
    world.fail("one", "ADD", output)
    with pytest.raises(PluginError) as caught:
        world.runtime().add(POD, undo=False)
    assert caught.value.code == 999
    assert world.sequence() == ["ADD one"]


def test_check_sends_the_cached_result_to_every_plugin(world: World) -> None:
    runtime = world.runtime()
    with pytest.raises(CniError, match="no cached result"):
        runtime.check(POD)
    runtime.add(POD)
    runtime.check(POD)
    assert world.sequence()[2:] == ["CHECK one", "CHECK two"]
    assert all(call[2]["prevResult"]["by"] == "two" for call in world.calls()[2:])


def test_check_and_gc_can_be_switched_off(world: World) -> None:
    runtime = world.runtime(disableCheck=True, disableGC=True)
    runtime.add(POD)
    runtime.check(POD)
    runtime.gc([])
    assert world.sequence() == ["ADD one", "ADD two"]


def test_gc_deletes_stale_attachments_first_then_names_the_valid_ones(world: World) -> None:
    runtime = world.runtime()
    runtime.add(POD)
    runtime.add(POD._replace(container_id="c2"))
    runtime.gc([("c2", "eth0")])
    assert world.sequence()[4:] == ["DEL two", "DEL one", "GC one", "GC two"]
    assert world.calls()[-1][2]["cni.dev/valid-attachments"] == [{"containerID": "c2", "ifname": "eth0"}]
    assert [entry.attachment.container_id for entry in runtime.cached()] == ["c2"]


def test_gc_tries_everything_and_raises_all_errors(world: World) -> None:
    runtime = world.runtime()
    runtime.add(POD)
    world.fail("two", "DEL", '{"code":11,"msg":"del"}')
    world.fail("one", "GC", '{"code":11,"msg":"gc"}')
    with pytest.raises(ExceptionGroup) as caught:
        runtime.gc([])
    assert [str(error) for error in caught.value.exceptions] == [
        "two DEL failed with code 11: del",
        "one GC failed with code 11: gc",
    ]
    assert world.sequence()[-1] == "GC two"


def test_status_and_gc_are_not_sent_before_1_1_0(world: World) -> None:
    old = world.runtime("1.0.0")
    old.status()
    old.gc([])
    assert world.sequence() == []
    world.runtime().status()
    assert world.sequence() == ["STATUS one", "STATUS two"]


def test_validate_refuses_a_version_a_plugin_does_not_speak(world: World) -> None:
    world.runtime("1.0.0").validate()
    with pytest.raises(CniError, match=r"plugin one does not speak 0\.4\.0"):
        world.runtime("0.4.0").validate()
    assert world.calls()[0][1]["CNI_NETNS"] == "dummy"


def test_a_missing_plugin_names_type_and_path(world: World) -> None:
    (world.bin / "two").unlink()
    with pytest.raises(CniError, match=f"no plugin 'two' in {world.bin}"):
        world.runtime().add(POD)


def test_a_plugin_that_hangs_is_given_up(world: World) -> None:
    (world.bin / "one").write_text("#!/bin/sh\nexec sleep 60\n")
    runtime = world.runtime()
    runtime.timeout = 0.1
    with pytest.raises(CniError, match=r"one ADD: no end after 0\.1 s"):
        runtime.add(POD, undo=False)


def test_load_list_reads_the_folder_of_the_network(tmp_path: Path) -> None:
    (tmp_path / "10.conflist").write_text('{"cniVersion":"1.1.0","name":"net","plugins":[{"type":"one"}]}')
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "20.conf").write_text('{"type":"three"}')
    (tmp_path / "net" / "10.conf").write_text('{"type":"two"}')
    assert [item["type"] for item in load_list(tmp_path / "10.conflist").plugins] == ["one", "two", "three"]
