"""A /proc of your own making, for tests that must not depend on what runs on the host.

The lines and links are those of a real proc file system (man proc(5)), written from the kernel's
format strings and not with the parsers under test.
"""

from __future__ import annotations

import ipaddress
import os
import shutil
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path

DEFAULT_NETNS = 4026531840
"""The inode of the first network namespace on most hosts."""

_HEADINGS = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid\n"
_PACKET_HEADINGS = "sk               RefCnt Type Proto  Iface R Rmem   User   Inode\n"

# include/net/tcp_states.h
_STATE_NUMBERS = {
    "established": 1, "syn_sent": 2, "syn_recv": 3, "fin_wait_1": 4, "fin_wait_2": 5,
    "time_wait": 6, "unconnected": 7, "close_wait": 8, "last_ack": 9, "listen": 10, "closing": 11,
}  # fmt: skip

Endpoint = tuple[str, int]
"""Address text and port, as in ``("127.0.0.1", 80)`` or ``("::1", 80)``."""


class ProcTree:
    """A directory that looks like /proc to a reader: ``SocketScanner(tree.root)``.

    ``tree = ProcTree(tmp_path)`` makes it below ``tmp_path``. Start times are in clock ticks of
    10 ms since boot, as /proc/PID/stat has them.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self.root = Path(directory) / "proc"
        self.root.mkdir()

    def add_process(
        self,
        pid: int,
        name: str | bytes = "python3",
        start_ticks: int = 100,
        *,
        exe: str = "/usr/bin/python3",
        cmdline: Sequence[str | bytes] = ("python3",),
        fds: Iterable[int] = (),
        netns: int = DEFAULT_NETNS,
        cgroup: str = "0::/\n",
        uid: int = 0,
        parent_pid: int = 1,
        state: str = "S",
        threads: int = 1,
    ) -> Path:
        """A process with sockets of these inodes open (from descriptor 3 on); its directory.

        ``exe`` empty is a process without one (a kernel thread). ``cgroup`` is the whole text of
        that file. Raises FileExistsError if the pid is taken.
        """
        directory = self.root / str(pid)
        directory.mkdir()
        raw_name = _raw(name)
        # Fields 5-19 and 21, 23-52 are read by nobody here; their number matters.
        (directory / "stat").write_bytes(
            b"%d (%b) %b %d %b%d 0 %d " % (
                pid, raw_name, state.encode(), parent_pid, b"0 " * 15, threads, start_ticks,
            ) + b"0 " * 29 + b"0\n"
        )  # fmt: skip
        escaped = raw_name.replace(b"\\", b"\\\\").replace(b"\n", b"\\n")
        (directory / "status").write_bytes(
            b"Name:\t%b\nPid:\t%d\nUid:\t%d\t%d\t%d\t%d\n" % (escaped, pid, uid, uid, uid, uid)
        )
        (directory / "comm").write_bytes(raw_name + b"\n")
        (directory / "cmdline").write_bytes(b"".join(_raw(a) + b"\0" for a in cmdline))
        (directory / "cgroup").write_text(cgroup)
        if exe:
            (directory / "exe").symlink_to(exe)
        (directory / "fd").mkdir()
        (directory / "ns").mkdir()
        (directory / "fd" / "0").symlink_to("/dev/null")
        for number, inode in enumerate(fds, 3):
            self.open_socket(pid, inode, number)
        self.move(pid, netns)
        return directory

    def remove_process(self, pid: int) -> None:
        """The process is gone, its number free again; its inode is not."""
        directory = self.root / str(pid)
        for entry in directory.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()
        directory.rename(self.root / f".gone-{directory.stat().st_ino}")

    def open_socket(self, pid: int, inode: int, descriptor: int) -> None:
        """The process has this socket open under this descriptor."""
        (self.root / str(pid) / "fd" / str(descriptor)).symlink_to(f"socket:[{inode}]")

    def move(self, pid: int, netns: int) -> None:
        """The process is in this network namespace from now on, as after setns(2)."""
        tables = self.tables(netns)
        directory = self.root / str(pid)
        for link, target in (("ns/net", f"net:[{netns}]"), ("net", f"../{tables.name}")):
            (directory / link).unlink(missing_ok=True)
            (directory / link).symlink_to(target)

    def be(self, pid: int) -> None:
        """``self`` is this process from now on."""
        link = self.root / "self"
        link.unlink(missing_ok=True)
        link.symlink_to(str(pid))

    def tables(self, netns: int = DEFAULT_NETNS) -> Path:
        """The directory with the socket tables of a namespace: what PID/net leads to."""
        directory = self.root / f".net-{netns}"
        if not directory.exists():
            directory.mkdir()
            for table in ("tcp", "tcp6", "udp", "udp6", "raw", "raw6", "icmp", "icmp6"):
                (directory / table).write_text(_HEADINGS)
            (directory / "packet").write_text(_PACKET_HEADINGS)
        return directory

    def add_socket(
        self,
        table: str,
        local: Endpoint = ("127.0.0.1", 0),
        remote: Endpoint | None = None,
        *,
        state: str = "",
        inode: int = 0,
        uid: int = 0,
        netns: int = DEFAULT_NETNS,
    ) -> None:
        """One more line in a table (``tcp``, ``udp6``, ``raw``, ``packet`` ...).

        In ``tcp6`` and its kin an IPv4 address is written v4-mapped. For ``raw`` the local port is
        the protocol number, for ``icmp`` the echo id. ``remote`` None is a wildcard. ``state``
        empty means ``established`` with a remote end, else ``listen`` for TCP and ``unconnected``
        for the others. ``packet`` ignores ends and state.
        """
        path = self.tables(netns) / table
        if table == "packet":
            line = f"00000000c1403935 3      3    0003   0     1 0      {uid:<6} {inode:<6}\n"
        else:
            six = table.endswith("6")
            idle = "listen" if table in ("tcp", "tcp6") else "unconnected"
            number = _STATE_NUMBERS[state or (idle if remote is None else "established")]
            line = (
                f"{0:4}: {_words(local, six)} {_words(remote or ('', 0), six)} {number:02X}"
                f" {0:08X}:{0:08X} {0:02X}:{0:08X} {0:08X} {uid:5} {0:8} {inode} 1"
                " 0000000000000000 100 0 0 10 0\n"
            )
        with path.open("a") as file:
            file.write(line)


def _raw(text: str | bytes) -> bytes:
    return text if isinstance(text, bytes) else text.encode()


def _words(endpoint: Endpoint, six: bool) -> str:
    """The end as the kernel prints it: 32-bit words in host order, then the port."""
    address, port = endpoint
    packed = ipaddress.ip_address(address).packed if address else bytes(16 if six else 4)
    if six and len(packed) == 4:
        packed = bytes(10) + b"\xff\xff" + packed
    count = len(packed) // 4
    words = struct.unpack(f"={count}I", packed)
    return "".join(f"{word:08X}" for word in words) + f":{port:04X}"
