"""BIRD's control socket: a command in, its answer out (doc/reply_codes and nest/cli.c of BIRD).

Every line of an answer begins with a code of four digits; ``-`` behind it means that more follows, a space that it was
the last one. Lines that go on with the code before begin with a space. Codes from 8000 on are errors.
"""

from __future__ import annotations

import asyncio
import contextlib
import re

from pycni_bgp.engine import BgpError

WAIT_S = 10.0
ANSWER_MAX = 1 << 28
"""Bytes. Half a million routes take about half of it."""
FAILED = 8000
_CODE = re.compile(r"(\d{4})([ -])(.*)")


async def ask(path: str, *commands: str, wait_s: float = WAIT_S) -> list[str]:
    """The answers to commands, as text. Raises BgpError."""
    try:
        async with asyncio.timeout(wait_s):
            reader, writer = await asyncio.open_unix_connection(path, limit=ANSWER_MAX)
            try:
                await _answer(reader, "greeting")
                found = []
                for command in commands:
                    writer.write(f"{command}\n".encode())
                    found.append(await _answer(reader, command))
                return found
            finally:
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()
    except TimeoutError as error:
        raise BgpError(f"BIRD: {commands[0]}: no answer within {wait_s:g} s") from error
    except OSError as error:
        raise BgpError(f"BIRD: {commands[0]}: {error.strerror or error}") from error


async def _answer(reader: asyncio.StreamReader, command: str) -> str:
    lines: list[str] = []
    failed = False
    while True:
        raw = await reader.readline()
        if not raw.endswith(b"\n"):
            raise BgpError(f"BIRD: {command}: it ended in the middle of an answer")
        line = raw.decode(errors="replace").rstrip("\n")
        match = _CODE.match(line)
        if match is None:
            lines.append(line[1:])
            continue
        failed = failed or int(match[1]) >= FAILED
        lines.append(match[3])
        if match[2] == " ":
            text = "\n".join(lines)
            if failed:
                raise BgpError(f"BIRD: {command}: {text.strip()}")
            return text
