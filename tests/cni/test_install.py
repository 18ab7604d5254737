"""install-cni and uninstall-cni: what they write, refuse, keep and take away; the bundle without any Python around."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from pycni.agent import bundle, install
from pycni.agent.install import CONFLIST, PRIVATE, SHIM, InstallError, Options, uninstall
from pycni.errors import ConfigError
from pycni.wire import interp

SYSTEM_PYTHON = "/usr/bin/python3"
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def dirs(tmp_path):
    """Options with a CNI binary folder and a configuration folder that do not exist yet."""
    return Options(bin_dir=tmp_path / "bin", conf_dir=tmp_path / "net.d")


def tree(path: Path) -> dict[str, bytes]:
    return {str(item.relative_to(path)): item.read_bytes() for item in path.rglob("*") if item.is_file()}


def call(shim: Path, command: str, **kwargs) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [shim],
        env={"CNI_COMMAND": command},
        input=b"{}",
        capture_output=True,
        timeout=20,
        check=False,
        **kwargs,
    )


def test_installs_shim_and_conflist_and_nothing_else(dirs):
    install.install(dirs)
    assert sorted(tree(dirs.bin_dir)) == [f"{PRIVATE}/installed.json", SHIM]
    assert sorted(tree(dirs.conf_dir)) == [CONFLIST]
    assert (dirs.bin_dir / SHIM).stat().st_mode & 0o777 == 0o755
    listing = json.loads((dirs.conf_dir / CONFLIST).read_bytes())
    assert (listing["name"], listing["cniVersion"], listing["cniVersions"][-1]) == ("pycni", "1.0.0", "1.1.0")
    assert set(listing["plugins"][0]["capabilities"]) == {
        "portMappings",
        "bandwidth",
        "ips",
        "ipRanges",
        "mac",
        "dns",
    }
    answer = call(dirs.bin_dir / SHIM, "VERSION")
    assert (answer.returncode, json.loads(answer.stdout)["supportedVersions"][-1]) == (0, "1.1.0")


def test_socket_is_written_into_the_shim(dirs):
    install.install(dirs._replace(socket="/run/other's/cni.sock"))
    answer = call(dirs.bin_dir / SHIM, "STATUS")
    assert (answer.returncode, json.loads(answer.stdout)["code"]) == (1, 50)
    assert "/run/other's/cni.sock" in json.loads(answer.stdout)["details"]


def test_network_name_is_changed_in_the_conflist(dirs):
    install.install(dirs._replace(network_name="cbr0"))
    assert json.loads((dirs.conf_dir / CONFLIST).read_bytes())["name"] == "cbr0"


def test_again_with_other_options_replaces_our_own_files(dirs):
    install.install(dirs)
    install.install(dirs._replace(network_name="cbr0"))
    install.install(dirs)
    assert json.loads((dirs.conf_dir / CONFLIST).read_bytes())["name"] == "pycni"


@pytest.mark.parametrize("options", [{}, {"exclusive": True}], ids=["plain", "exclusive"])
def test_uninstall_leaves_the_folders_as_they_were(dirs, options):
    for folder in (dirs.bin_dir, dirs.conf_dir):
        folder.mkdir()
    (dirs.bin_dir / "bridge").write_bytes(b"other plugin")
    (dirs.conf_dir / "10-flannel.conflist").write_bytes(b"{}")
    (dirs.conf_dir / "README").write_bytes(b"x")
    before = tree(dirs.bin_dir), tree(dirs.conf_dir)
    install.install(dirs._replace(**options))
    uninstall(dirs.bin_dir, dirs.conf_dir)
    assert (tree(dirs.bin_dir), tree(dirs.conf_dir)) == before
    assert not (dirs.bin_dir / PRIVATE).exists()
    assert uninstall(dirs.bin_dir, dirs.conf_dir) == []


def test_uninstall_leaves_what_was_edited(dirs):
    install.install(dirs)
    (dirs.conf_dir / CONFLIST).write_text("{}")
    lines = uninstall(dirs.bin_dir, dirs.conf_dir)
    assert any("was changed since it was installed and stays" in line for line in lines)
    assert sorted(tree(dirs.conf_dir)) == [CONFLIST]
    assert tree(dirs.bin_dir) == {}


def test_a_configuration_that_sorts_first_is_warned_about_or_put_aside(dirs):
    dirs.conf_dir.mkdir()
    (dirs.conf_dir / "10-flannel.conflist").write_text("{}")
    assert any("sorts before 10-pycni.conflist" in line for line in install.install(dirs))
    assert not any("warning" in line for line in install.install(dirs._replace(exclusive=True)))
    assert sorted(tree(dirs.conf_dir)) == ["10-flannel.conflist.pycni-saved", CONFLIST]
    # Once put aside it stays on record, also when installed again without the option.
    install.install(dirs)
    uninstall(dirs.bin_dir, dirs.conf_dir)
    assert sorted(tree(dirs.conf_dir)) == ["10-flannel.conflist"]


@pytest.mark.parametrize("where", ["bin", "conf"])
def test_a_foreign_file_is_refused_and_with_force_kept(dirs, where):
    path = dirs.bin_dir / SHIM if where == "bin" else dirs.conf_dir / CONFLIST
    path.parent.mkdir()
    path.write_bytes(b"somebody's")
    with pytest.raises(InstallError, match="exists and was not installed by pycni: nothing done"):
        install.install(dirs)
    assert tree(path.parent) == {path.name: b"somebody's"}
    install.install(dirs._replace(force=True))
    assert path.with_name(path.name + install.SAVED).read_bytes() == b"somebody's"


def test_an_edited_conflist_is_refused(dirs):
    install.install(dirs)
    (dirs.conf_dir / CONFLIST).write_text("{}")
    with pytest.raises(InstallError, match="was changed since it was installed"):
        install.install(dirs)


def test_killed_between_manifest_and_files_the_next_run_goes_on(dirs, monkeypatch):
    install.install(dirs)
    real = install._write

    def dies(path, content, mode):
        if path.name == SHIM:
            raise KeyboardInterrupt
        real(path, content, mode)

    monkeypatch.setattr(install, "_write", dies)
    with pytest.raises(KeyboardInterrupt):
        install.install(dirs._replace(socket="/run/b.sock"))
    monkeypatch.undo()
    install.install(dirs._replace(socket="/run/b.sock"))
    assert b"/run/b.sock" in (dirs.bin_dir / SHIM).read_bytes()


WRONG = [
    ("relative socket", {"socket": "cni.sock"}, "socket='cni.sock': not an absolute path"),
    ("long socket", {"socket": "/" + "s" * 200}, "a Unix socket's path has at most 107"),
    ("network name", {"network_name": "a/b"}, "name='a/b': must match"),
    ("interpreter that is none", {"interpreter": "/bin/ls"}, "does not run"),
    ("interpreter that is not there", {"interpreter": "/no/python"}, "does not run"),
    (
        "folder with a space",
        {"interpreter": SYSTEM_PYTHON, "host_bin_dir": "/a b"},
        "no interpreter for a #! line",
    ),
    (
        "folder too long",
        {"interpreter": SYSTEM_PYTHON, "host_bin_dir": "/" + "d" * 120},
        "no interpreter for a #! line",
    ),
]


@pytest.mark.parametrize(("options", "message"), [c[1:] for c in WRONG], ids=[c[0] for c in WRONG])
def test_wrong_options_change_nothing(dirs, options, message):
    with pytest.raises((ConfigError, InstallError, bundle.BundleError)) as caught:
        install.install(dirs._replace(**options))
    assert message in str(caught.value)
    assert not dirs.bin_dir.exists()
    assert not dirs.conf_dir.exists()


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b'{"plugins": {}}', b'{"plugins": [{"type": "bridge"}]}', b"[" * 100_000, b"\xff"],
    ids=["empty", "list", "plugins-object", "no-pycni", "deep", "binary"],
)
def test_wrong_conflist_is_refused(dirs, tmp_path, content):
    (tmp_path / "c").write_bytes(content)
    with pytest.raises(ConfigError):
        install.install(dirs._replace(conflist=tmp_path / "c"))
    assert not dirs.bin_dir.exists()


@pytest.mark.parametrize(
    "manifest",
    [
        "{",
        "[]",
        '{"bin": {"../x": []}, "conf": {}, "moved": {}}',
        '{"bin": {}, "conf": {}, "moved": {"a": "/etc/x"}}',
    ],
    ids=["not-json", "list", "path-outside", "move-outside"],
)
def test_a_broken_manifest_stops_everything(dirs, manifest):
    install.install(dirs)
    (dirs.bin_dir / PRIVATE / "installed.json").write_text(manifest)
    before = tree(dirs.bin_dir), tree(dirs.conf_dir)
    with pytest.raises(InstallError):
        install.install(dirs)
    with pytest.raises(InstallError):
        uninstall(dirs.bin_dir, dirs.conf_dir)
    assert (tree(dirs.bin_dir), tree(dirs.conf_dir)) == before


def test_a_shim_in_use_is_replaced_without_one_failing_call(dirs):
    install.install(dirs)
    failures, stop = [], threading.Event()

    def hammer():
        while not stop.is_set():
            answer = call(dirs.bin_dir / SHIM, "VERSION")
            if answer.returncode:
                failures.append(answer)

    threads = [threading.Thread(target=hammer) for _ in range(2)]
    for thread in threads:
        thread.start()
    for n in range(60):
        install.install(dirs._replace(socket=f"/run/{n}.sock"))
    stop.set()
    for thread in threads:
        thread.join()
    assert failures == []


def test_by_the_command_line(tmp_path):
    def pycnid(*argv):
        return subprocess.run(
            [sys.executable, "-m", "pycni.agent.main", *argv, f"--cni-bin-dir={tmp_path}/b", f"--cni-conf-dir={tmp_path}/c"],
            capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2],
        )  # fmt: skip

    done = pycnid("install-cni", "--socket=/run/x.sock", "--network-name=cbr0", "--with-interpreter")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads((tmp_path / "c" / CONFLIST).read_bytes())["name"] == "cbr0"
    answer = call(tmp_path / "b" / SHIM, "STATUS")
    assert "/run/x.sock" in json.loads(answer.stdout)["details"]
    (tmp_path / "c" / CONFLIST).write_text("{}")
    done = pycnid("install-cni")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "was changed since it was installed" in done.stderr
    done = pycnid("uninstall-cni")
    assert done.returncode == 0
    assert tree(tmp_path / "b") == {}


# --- the bundled interpreter


def test_bundled_shim_runs_where_there_is_nothing_else(dirs, tmp_path):
    """A root folder with our files only: no Python, no C library, no shell, no /proc."""
    root = tmp_path / "root"
    options = dirs._replace(
        bin_dir=root / "opt/cni/bin",
        interpreter=SYSTEM_PYTHON,
        host_bin_dir="/opt/cni/bin",
        socket="/cni.sock",
    )
    lines = install.install(options)
    assert any("python-" in line for line in lines), lines
    assert sum(len(content) for content in tree(options.bin_dir).values()) < 16e6

    def inside(command):
        return call(Path("/opt/cni/bin/pycni"), command, preexec_fn=lambda: os.chroot(root))

    assert json.loads(inside("VERSION").stdout)["supportedVersions"][0] == "0.1.0"
    answer = inside("STATUS")
    assert (answer.returncode, json.loads(answer.stdout)["code"], answer.stderr) == (1, 50, b"")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(root / "cni.sock"))
        server.listen(1)
        server.settimeout(10)
        thread = threading.Thread(target=serve_one, args=(server,))
        thread.start()
        answer = inside("DEL")
        thread.join()
    assert (answer.returncode, answer.stdout, answer.stderr) == (7, b"hello", b"")


def serve_one(server):
    connection, _ = server.accept()
    with connection:
        connection.recv(4096)
        connection.sendall(b"pycni1 7 5\nhello")


def test_reinstalling_keeps_one_interpreter_and_uninstall_removes_it(dirs):
    options = dirs._replace(interpreter=SYSTEM_PYTHON)
    install.install(options)
    install.install(options)
    folders = [path for path in (dirs.bin_dir / PRIVATE).iterdir() if path.is_dir()]
    assert len(folders) == 1
    assert call(dirs.bin_dir / SHIM, "VERSION").returncode == 0
    # Back to the host's own: the bundle stays a while for shims that run, then goes.
    install.install(dirs)
    assert folders[0].exists()
    os.utime(folders[0], (1, 1))
    install.install(dirs)
    assert not folders[0].exists()
    install.install(options)
    uninstall(dirs.bin_dir, dirs.conf_dir)
    assert tree(dirs.bin_dir) == {}


def test_bundle_of_this_interpreter_runs(tmp_path):
    folder = tmp_path / "py"
    for file in bundle.collect(sys.executable, str(folder)):
        path = folder / file.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(file.content)
        path.chmod(file.mode)
    code = "import sys, json, _socket; print(sys.prefix, json.__file__)"
    done = subprocess.run(
        [folder / "bin/python3", "-IS", "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [str(folder), next(str(p) for p in folder.rglob("json/__init__.pyc"))]
    assert done.stderr == ""


@pytest.mark.parametrize(
    "image",
    [b"", b"\x7fELF", b"#!/bin/sh\n", b"\x7fELF\x01\x01" + bytes(100), b"\x7fELF\x02\x01" + b"\xff" * 200],
    ids=["empty", "cut", "script", "32-bit", "garbage"],
)
def test_what_is_no_executable_is_refused(image):
    with pytest.raises(ValueError, match=r"."):
        interp.relocated(image, "/l", "/r")


def test_relocation_is_read_back():
    image = Path(os.path.realpath(SYSTEM_PYTHON)).read_bytes()
    moved = interp.relocated(image, "/somewhere/with/a/long/path/to/ld.so", "/libs")
    assert interp.interpreter(moved) == "/somewhere/with/a/long/path/to/ld.so"
    assert interp._parse(moved).value(interp.DT_RPATH) > 0
    assert b"/libs\0" in moved[len(image) :]


@pytest.mark.parametrize("tag", ["cpython-311", "cpython-399"], ids=["byte code fits", "another Python"])
def test_the_installed_plugin_answers_from_its_byte_code_or_its_source(tmp_path: Path, tag: str) -> None:
    text = install.render_shim((ROOT / "cni-bin" / "pycni").read_text(), "/usr/bin/python3", "/run/x.sock")
    plugin = tmp_path / "pycni"
    plugin.write_text(install.precompile(text).replace(repr(sys.implementation.cache_tag), repr(tag)))
    plugin.chmod(0o755)
    done = subprocess.run(
        [plugin], env={"CNI_COMMAND": "STATUS"}, input=b"{}", capture_output=True, check=False
    )
    assert json.loads(done.stdout)["code"] == 50
    assert "/run/x.sock" in json.loads(done.stdout)["details"]
