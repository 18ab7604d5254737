"""Maps and programs that outlive the process: pinned, found again, and replaced under running traffic.

Life: ``BpfObject`` opens the pinned maps that fit its specification and makes the others. The caller fills what is new
and calls ``commit``: programs that are not the wanted ones are loaded, every link gets its program in one step of the
kernel's, and the pins are renamed into place. A process that dies anywhere in between leaves the old programs with the
old maps or the new with the new; the next one finds out by the ids the kernel reports, never by memory.

    <folder>/maps/<map>   <folder>/programs/<function>   <folder>/links/<attachment>

A program is the wanted one when the hash in its name is that of its source and it uses exactly our maps. A map of other
sizes is made anew; what the old one holds is copied when key and value have kept theirs.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from pycni.errors import KernelError
from pycni.kernel import bpf, bpf_build, bpf_places
from pycni.kernel.bpf_map import BpfMap, MapSpec


class ProgramSpec(NamedTuple):
    """One function of the source: what kind of program it is and where that kind is attached."""

    function: str
    kind: int
    attach_type: int
    flags: int = 0
    """BPF_F_* it is loaded with."""


class Attachment(NamedTuple):
    """One place a program is attached to. ``target`` is what links take: a control group's descriptor, an ifindex."""

    name: str
    function: str
    target: int
    target_id: int
    """What links report: a control group's id, an ifindex."""
    flags: int = 0
    """Of the hook; for a link that is made, not for one that is there."""


class Source(NamedTuple):
    """C source with what it is compiled by. Programs name maps by their place in the object's map specifications."""

    text: str
    flags: tuple[str, ...] = ()
    cache: str = bpf_build.CACHE


class BpfObject:
    """The maps and programs of one folder of pins. One thread at a time."""

    def __init__(
        self,
        folder: str,
        source: Source,
        maps: Sequence[MapSpec],
        programs: Sequence[ProgramSpec],
        *,
        lent: Mapping[str, BpfMap] | None = None,
    ) -> None:
        """Open or make the maps. Nothing is pinned or attached before ``commit``. Raises KernelError, OSError.

        ``lent``: maps of another object, by name, that programs of this one use too; they are pinned there.
        """
        self.folder = folder
        self._source = source
        self._specs = tuple(maps)
        self._programs = tuple(programs)
        self._functions = [item.function for item in programs]
        self._digest = bpf_build.digest(source.text, self._functions, source.flags)
        self.maps: dict[str, BpfMap] = {}
        self.fresh: set[str] = set()
        """Names of maps that are not pinned yet."""
        try:
            for spec in self._specs:
                if lent is not None and spec.name in lent:
                    self.maps[spec.name] = BpfMap(spec, os.dup(lent[spec.name].fd))
                else:
                    self.maps[spec.name] = self._open_map(spec)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let go of the descriptors; what is pinned keeps working."""
        for item in self.maps.values():
            item.close()

    def commit(self, attachments: Sequence[Attachment]) -> list[str]:
        """Make the wanted programs run, with these maps, at exactly these places; says what was done.

        Does nothing when it is so already. Raises BuildError, KernelError, OSError.
        """
        for part in ("maps", "programs", "links"):
            os.makedirs(os.path.join(self.folder, part), mode=0o700, exist_ok=True)
        done: list[str] = []
        ids = [bpf.map_info(self.maps[spec.name].fd).id for spec in self._specs]
        with contextlib.ExitStack() as stack:
            programs = self._programs_open(stack, ids, done)
            for attachment in attachments:
                program = programs[attachment.function]
                spec = next(item for item in self._programs if item.function == attachment.function)
                self._link(attachment, program, spec, done)
        for name in sorted(self.fresh):
            self._pin(self.maps[name].fd, "maps", name)
            done.append(f"map {name}")
        self.fresh.clear()
        for part, names in (
            ("maps", {spec.name for spec in self._specs}),
            ("programs", set(self._functions)),
            ("links", {item.name for item in attachments}),
        ):
            done += self._sweep(part, names)
        return done

    def links(self) -> dict[str, tuple[int, int]]:
        """What is attached by pinned links: name -> what it is attached to (0: that is gone), program's id."""
        return attached(self.folder)

    def attach(self, attachments: Sequence[Attachment]) -> list[str]:
        """Have programs run at these places too; says what was done. ``commit`` has to have been called.

        All are tried. Raises KernelError: the first failure.
        """
        done: list[str] = []
        failed: KernelError | None = None
        with contextlib.ExitStack() as stack:
            programs: dict[str, int] = {}
            for attachment in attachments:
                function = attachment.function
                try:
                    if function not in programs:
                        programs[function] = bpf.get(os.path.join(self.folder, "programs", function))
                        stack.callback(os.close, programs[function])
                    spec = next(item for item in self._programs if item.function == function)
                    self._link(attachment, programs[function], spec, done)
                except KernelError as error:
                    failed = failed or error
        if failed is not None:
            raise failed
        return done

    def release(self, names: Sequence[str]) -> None:
        """Take off the programs of pinned links; harmless for names that are not there."""
        for name in names:
            path = os.path.join(self.folder, "links", name)
            bpf_places.detach(path)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)

    def detach(self) -> list[str]:
        """Remove every pin: programs stop at once, maps go with the last descriptor. Says what went."""
        return bpf_places.remove_tree(self.folder)

    def _open_map(self, spec: MapSpec) -> BpfMap:
        fd = self._pinned("maps", spec.name)
        if fd is None:
            self.fresh.add(spec.name)
            return BpfMap.create(spec)
        info = bpf.map_info(fd)
        if spec.fits(info):
            return BpfMap(spec, fd)
        old = BpfMap(MapSpec(spec.name, info.kind, info.key, info.value, info.entries, info.flags), fd)
        try:
            new = BpfMap.create(spec)
            self.fresh.add(spec.name)
            if (info.key, info.value) == (spec.key, spec.value) and spec.kind != bpf.SK_STORAGE:
                new.update(old.items())
            return new
        finally:
            old.close()

    def _programs_open(
        self, stack: contextlib.ExitStack, ids: Sequence[int], done: list[str]
    ) -> dict[str, int]:
        """Descriptors of all programs, loaded where the pinned ones are not the wanted ones."""
        found: dict[str, int] = {}
        stale = []
        for spec in self._programs:
            fd = self._pinned("programs", spec.function)
            if fd is not None:
                stack.callback(os.close, fd)
                info = bpf.program_info(fd)
                if info.name == self._program_name(spec.function) and info.maps <= set(ids):
                    found[spec.function] = fd
                    continue
            stale.append(spec)
        if not stale:
            return found
        code = self._code()
        fds = [self.maps[spec.name].fd for spec in self._specs]
        for spec in stale:
            body = bpf_build.relocate(code[spec.function], fds)
            name = self._program_name(spec.function)
            fd = bpf.load_program(spec.kind, body, attach_type=spec.attach_type, name=name, flags=spec.flags)
            stack.callback(os.close, fd)
            found[spec.function] = fd
            self._pin(fd, "programs", spec.function)
            done.append(f"program {spec.function}")
        return found

    def _code(self) -> bpf_build.Code:
        return bpf_build.build(
            self._source.text, self._functions, self._source.flags, cache=self._source.cache
        )

    def _link(self, attachment: Attachment, program: int, spec: ProgramSpec, done: list[str]) -> None:
        wanted = bpf.program_info(program).id
        link = self._pinned("links", attachment.name)
        if link is not None:
            try:
                info = bpf.link_info(link)
                if info.target == attachment.target_id:
                    if info.program != wanted:
                        bpf.update_link(link, program, attachment.name)
                        done.append(f"swapped {attachment.name}")
                    return
            finally:
                os.close(link)
        link = bpf.create_link(
            program, attachment.target, spec.attach_type, attachment.name, attachment.flags
        )
        try:
            self._pin(link, "links", attachment.name)
        finally:
            os.close(link)
        done.append(f"attached {attachment.name}")

    def _program_name(self, function: str) -> str:
        return f"{function[:8]}_{self._digest[:6]}"

    def _pinned(self, part: str, name: str) -> int | None:
        try:
            return bpf.get(os.path.join(self.folder, part, name))
        except KernelError as error:
            if error.errno != errno.ENOENT:
                raise
            return None

    def _pin(self, fd: int, part: str, name: str) -> None:
        """Pin under a name, in place of what has it, in one step."""
        path = os.path.join(self.folder, part, name)
        temporary = path + "-new"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        bpf.pin(fd, temporary)
        os.rename(temporary, path)

    def _sweep(self, part: str, wanted: set[str]) -> list[str]:
        gone = []
        folder = os.path.join(self.folder, part)
        for name in os.listdir(folder):
            if name not in wanted:
                if part == "links":
                    bpf_places.detach(os.path.join(folder, name))
                os.unlink(os.path.join(folder, name))
                gone.append(f"removed {part}/{name}")
        return gone


def attached_programs(folder: str) -> Mapping[str, int]:
    """Ids of the programs behind the pinned links of a folder, by attachment; empty without any. Raises KernelError."""
    return {name: program for name, (_, program) in attached(folder).items()}


def attached(folder: str) -> dict[str, tuple[int, int]]:
    """Targets (0: gone) and programs' ids of the pinned links of a folder, by attachment. Raises KernelError."""
    found = {}
    where = os.path.join(folder, "links")
    for name in sorted(os.listdir(where)) if os.path.isdir(where) else ():
        fd = bpf.get(os.path.join(where, name))
        try:
            info = bpf.link_info(fd)
            found[name] = (info.target, info.program)
        finally:
            os.close(fd)
    return found
