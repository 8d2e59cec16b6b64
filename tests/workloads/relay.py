"""Two tun devices, and what comes out of the one goes into the other: relay.py DEVICE PATH PATH

The paths are those of two network namespaces. Says ``ready`` when both devices are there; they are
gone when it ends.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import select
import struct
import sys

_CLONE_NEWNET = 0x40000000
_TUNSETIFF = 0x400454CA
_IFF_TUN, _IFF_NO_PI = 0x0001, 0x1000


def opened(device: str, path: str) -> int:
    with open(path, "rb") as namespace:
        if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), path)
    made = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(made, _TUNSETIFF, struct.pack("16sH22x", device.encode(), _IFF_TUN | _IFF_NO_PI))
    return made


def main() -> None:
    device, *paths = sys.argv[1:]
    ends = [opened(device, path) for path in paths]
    print("ready", flush=True)
    while True:
        for end in select.select(ends, [], [])[0]:
            try:
                packet = os.read(end, 65535)
                os.write(ends[1 - ends.index(end)], packet)
            except OSError:  # a device that is down takes and gives nothing
                continue


if __name__ == "__main__":
    main()
