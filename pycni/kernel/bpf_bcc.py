"""The compiler's own process: C in, instructions out, by bcc's LLVM. Run by ``bpf_build``, never imported by the agent.

Reads one JSON object from its input (source, functions, flags), writes one of hexadecimal instructions by function name
to its output; what the compiler has to say goes to standard error. LLVM takes 130 MB, which go when this process ends.

Programs name maps by number, ``bpf_pseudo_fd(1, number)``, so that nothing is created in the kernel here and the
outcome depends on nothing but the input: the loader puts descriptors in place of numbers.
"""

from __future__ import annotations

import json
import sys


def main() -> int:
    """Compile what standard input asks for; the exit code says whether it could be done."""
    try:
        from bcc import BPF  # noqa: PLC0415 - its absence is an answer
    except ImportError as exc:
        print(f"the Python package bcc cannot be imported: {exc}", file=sys.stderr)
        return 3
    request = json.load(sys.stdin)
    try:
        module = BPF(text=request["source"], cflags=request["flags"])
        code = {name: module.dump_func(name).hex() for name in request["functions"]}
    except Exception as exc:  # noqa: BLE001 - what bcc raises
        print(str(exc), file=sys.stderr)
        return 4
    json.dump(code, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
