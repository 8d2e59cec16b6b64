"""Which addresses a namespace has, from files as the kernel writes them."""

from __future__ import annotations

import ipaddress
from pathlib import Path

from procnet.model import TCP, ProcessId, Socket, SocketScan
from procnet.sockets.addresses import NamespaceAddresses, own_addresses

FIB_TRIE = b"""Main:
  +-- 0.0.0.0/0 3 0 5
     |-- 0.0.0.0
        /0 universe UNICAST
     +-- 127.0.0.0/8 2 0 2
        +-- 127.0.0.0/31 1 0 0
           |-- 127.0.0.0
              /8 host LOCAL
           |-- 127.0.0.1
              /32 host LOCAL
        |-- 127.255.255.255
           /32 link BROADCAST
     +-- 10.9.0.0/24 2 0 2
        |-- 10.9.0.0
           /24 link UNICAST
        |-- 10.9.0.2
           /32 host LOCAL
        |-- 10.9.0.255
           /32 link BROADCAST
        |-- 10.9.0.7
           /32 universe UNICAST
"""
IF_INET6 = b"""fd000000000000000000000000000002 04 40 00 82     eth0
00000000000000000000000000000001 01 80 10 80       lo
"""
OWN = {"127.0.0.1", "10.9.0.2", "fd00::2", "::1"}


def packed(*addresses: str) -> frozenset[bytes]:
    return frozenset(ipaddress.ip_address(address).packed for address in addresses)


def test_own_addresses_are_those_of_the_host_and_no_route() -> None:
    assert own_addresses(FIB_TRIE, IF_INET6) == packed(*OWN)
    assert own_addresses(b"", b"") == frozenset()


def process(root: Path, pid: int, netns: Path, fib_trie: bytes = FIB_TRIE) -> None:
    (root / str(pid) / "net").mkdir(parents=True)
    (root / str(pid) / "ns").mkdir()
    (root / str(pid) / "net" / "fib_trie").write_bytes(fib_trie)
    (root / str(pid) / "ns" / "net").hardlink_to(netns)


def scan(netns: int, pid: int) -> SocketScan:
    socket = Socket(netns, TCP, 4, bytes(4), 80, bytes(4), 0, "listen", 7001, 0)
    return SocketScan(0, 0, [socket], {7001: frozenset({ProcessId(pid, 0)})}, 0, 0)


def test_they_are_read_by_a_process_that_is_there_and_read_again(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.touch(), there.touch()
    root, now_s = tmp_path / "proc", [0.0]
    process(root, 11, here)
    process(root, 13, there)
    addresses = NamespaceAddresses(root, clock=lambda: now_s[0])
    inode = here.stat().st_ino
    # Process 13 has a socket of that namespace, but is in another one itself.
    assert addresses.read(scan(inode, 13)) == {}
    assert addresses.read(scan(inode, 17)) == {}
    assert addresses.read(scan(inode, 11)) == {inode: packed("127.0.0.1", "10.9.0.2")}

    (root / "11" / "net" / "if_inet6").write_bytes(IF_INET6)
    now_s[0] = 4.9
    assert addresses.read(scan(inode, 11)) == {inode: packed("127.0.0.1", "10.9.0.2")}
    now_s[0] = 5.1
    assert addresses.read(scan(inode, 11)) == {inode: packed(*OWN)}
    # A namespace without a socket is forgotten.
    assert inode not in addresses.read(scan(there.stat().st_ino, 13))


def test_one_with_too_many_routes_is_not_told_of_in_part(tmp_path: Path) -> None:
    here, root, now_s = tmp_path / "here", tmp_path / "proc", [0.0]
    here.touch()
    route = b"        |-- 10.9.0.7\n           /32 universe UNICAST\n"
    fits = FIB_TRIE + route * (((4 << 20) - len(FIB_TRIE)) // len(route))
    process(root, 11, here, fits)
    addresses = NamespaceAddresses(root, clock=lambda: now_s[0])
    inode = here.stat().st_ino
    assert addresses.read(scan(inode, 11)) == {inode: packed("127.0.0.1", "10.9.0.2")}

    shown = root / "11" / "net" / "fib_trie"
    shown.write_bytes(fits + route)
    now_s[0] = 5.1
    assert addresses.read(scan(inode, 11)) == {}
    # Nor is it read at each look.
    shown.write_bytes(FIB_TRIE)
    now_s[0] = 10.0
    assert addresses.read(scan(inode, 11)) == {}
    now_s[0] = 10.2
    assert addresses.read(scan(inode, 11)) == {inode: packed("127.0.0.1", "10.9.0.2")}
