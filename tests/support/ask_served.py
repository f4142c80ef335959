"""Serve a packaged model and ask it once, in a network namespace whose loopback is not up yet."""

import fcntl
import socket
import struct
import sys
from pathlib import Path

_SIOCSIFFLAGS, _IFF_UP = 0x8914, 1


def raise_loopback() -> None:
    with socket.socket() as any_socket:
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", _IFF_UP))


if __name__ == "__main__":
    import httpx2

    from support.served import serving

    raise_loopback()
    with serving({"model": Path(sys.argv[1])}, "--despite-gate") as served:
        answer = httpx2.post(f"{served.url}/classify", json={"inputs": [sys.argv[2]]}, timeout=60, trust_env=False)
        assert answer.status_code == 200, answer.text
