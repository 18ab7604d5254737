"""Somebody outside of the cluster: tells everybody who connects by which address they are seen.

``outside.py PORT``, on the router, with nothing but Python's own library. One line per connection.
"""

from __future__ import annotations

import contextlib
import socket
import sys


def main(port: int) -> None:
    """Until it is killed; both families."""
    with socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True) as listener:
        while True:
            sock, peer = listener.accept()
            with sock, contextlib.suppress(OSError):  # gone already
                sock.sendall(peer[0].removeprefix("::ffff:").encode() + b"\n")


if __name__ == "__main__":
    main(int(sys.argv[1]))
