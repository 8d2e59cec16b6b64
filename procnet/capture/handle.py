"""A device or a capture file, read in batches: the only importer of ``pcap``.

``pcap`` is pypcap, or pcap-ct on the Pythons that pypcap does not build for; both wrap libpcap and
share its traps, which this module is there to keep away from its callers:

* iterating over a handle, or ``loop()``, replaces the process's SIGINT handler: only ``dispatch()``
  is used here;
* a blocking ``dispatch()`` holds the GIL: handles are non-blocking, and callers wait in ``select``;
* anything after ``close()`` is a segmentation fault: a lock stands in front of every call;
* a *file* of the interface's name in the working directory is opened in its place: refused;
* a deleted interface is only a negative number from ``dispatch()``: ``InterfaceGoneError``.
"""

from __future__ import annotations

import errno
import itertools
import os
import stat
import threading
from collections.abc import Callable
from types import ModuleType
from typing import Any

from procnet import features
from procnet.capture.decode import LINK_TYPES
from procnet.capture.interfaces import list_interfaces
from procnet.capture.kernel_filter import keep_headers
from procnet.capture.privilege import ask_for_packets
from procnet.errors import AccessError, CaptureError, UnsupportedError, UsageError
from procnet.model import Feature, Support

PacketCallback = Callable[[float, bytes], object]
"""Called with the time, seconds since 1970, and the bytes that were captured."""

SNAPLEN_BYTES = 256
"""Room for two VLAN tags, IPv4 or IPv6 with a few extension headers, and TCP with all options."""
TIMEOUT_MS = 50
"""How long the kernel may hold back a block that is not full. 0 would be for ever (TPACKET_V3)."""
BUFFER_BYTES = 4 << 20
"""For each interface, and it counts as memory of this process: about 20 000 packets, or 50 ms of
400 000 a second."""

BATCH_PACKETS = 16384
"""A sender that is faster than we are must not keep ``read()``, and with it the GIL, for ever."""

_MODULE_REMEDY = (
    "pip install 'pypcap>=1.3; python_version < \"3.12\"' "
    "'pcap-ct>=1.3.0b3; python_version >= \"3.12\"' (pypcap needs libpcap-dev to build)"
)
_ACCESS_REMEDY = (
    "run as root (sudo), or give the interpreter the capability: "
    "sudo setcap cap_net_raw+ep $(readlink -f $(command -v python3))"
)
# First bytes of pcap files (microseconds, nanoseconds, Kuznetzov's variant; either byte order) and
# of pcapng (https://www.ietf.org/archive/id/draft-ietf-opsawg-pcap-04.html, and -pcapng).
_MAGICS = {
    number.to_bytes(4, order)
    for number in (0xA1B2C3D4, 0xA1B23C4D, 0xA1B2CD34, 0x0A0D0D0A)
    for order in ("little", "big")
}
_COUNTER_WRAP = 1 << 32


class InterfaceGoneError(CaptureError):
    """The interface was deleted while it was read.

    Close the handle; make another when the name is back, which ``InterfaceWatch`` tells. The new
    interface has another index, and the old handle never sees its packets.
    """


class _Handle:
    """What devices and files have in common: one ``pcap`` object that is never touched too late."""

    def __init__(self, name: str, opened: Any) -> None:
        self.name = name
        self.link_type = int(opened.datalink())
        self._pcap: Any = opened
        self._closed = False
        self._lock = threading.Lock()
        if self.link_type not in LINK_TYPES:
            self.close()
            raise CaptureError(
                f"cannot read {name}: its link type is {self.link_type}, which cannot be decoded; "
                f"known are {', '.join(map(str, sorted(LINK_TYPES)))}"
            )

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give everything back. Any thread may call it, also from a callback, also twice.

        While a ``read()`` is under way, the handle is closed when that returns.
        """
        self._closed = True
        self._release()

    def _release(self) -> None:
        # Whoever cannot have the lock leaves the work to the one who has it.
        if self._closed and self._lock.acquire(blocking=False):
            try:
                opened, self._pcap = self._pcap, None
                if opened is not None:
                    opened.close()
            finally:
                self._lock.release()

    def _dispatch(self, callback: PacketCallback, max_packets: int) -> tuple[int, str]:
        """How many packets came, negative after an error, and what libpcap says about that."""
        # To libpcap, 0 and less mean: without end.
        if max_packets < 1:
            raise UsageError(f"cannot read {max_packets} packets of {self.name}")
        if not self._lock.acquire(blocking=False):
            raise UsageError(f"cannot read {self.name}: another read() is under way")
        try:
            if self._closed or self._pcap is None:
                raise CaptureError(f"cannot read {self.name}: it is closed")
            # An exception of the callback comes out of here; later packets of the batch have been
            # delivered all the same.
            count = int(self._pcap.dispatch(max_packets, callback))
            return count, (_text(self._pcap.geterr()) if count < 0 else "")
        finally:
            self._lock.release()
            self._release()


class LiveHandle(_Handle):
    """Packets of one interface of this network namespace, as they come.

    Not promiscuous: what the network card drops is not this host's. ``snaplen_bytes`` of each
    packet are kept; the kernel holds up to ``buffer_bytes`` until they are read.

    Raises ``UsageError`` for what cannot be a name, ``AccessError`` without CAP_NET_RAW,
    ``UnsupportedError`` where no ``pcap`` module is installed, and ``CaptureError`` for an
    interface that does not exist or cannot be opened (because it is down, for example).
    """

    def __init__(
        self,
        name: str,
        *,
        buffer_bytes: int = BUFFER_BYTES,
        snaplen_bytes: int = SNAPLEN_BYTES,
        timeout_ms: int = TIMEOUT_MS,
    ) -> None:
        if not isinstance(name, str) or not name or "\0" in name:
            raise UsageError(f"cannot capture on {name!r}: that is no interface name")
        _require_access(name)
        known = {interface.name: interface for interface in list_interfaces()}
        if name not in known:
            raise CaptureError(
                f"cannot capture on {name!r}: there is no such interface; there are "
                f"{', '.join(known) or 'none'}"
            )
        self._refuse_file(name)
        self._dropped_packets = 0
        self._last_drop_figure = 0
        try:
            opened = _module().pcap(
                name=name,
                snaplen=snaplen_bytes,
                promisc=False,
                timeout_ms=timeout_ms,
                buffer_size=buffer_bytes,
            )
            opened.setnonblock(True)
        except OSError as error:
            raise CaptureError(f"cannot capture on {name}: {_reason(error)}") from error
        except UnicodeEncodeError as error:
            # The kernel allows any bytes in a name, the pcap modules only UTF-8.
            raise CaptureError(
                f"cannot capture on {name!r}: its name is not UTF-8; rename it, or name the others"
            ) from error
        self._fileno = int(opened.fileno())
        if not stat.S_ISSOCK(os.fstat(self._fileno).st_mode):
            opened.close()
            self._refuse_file(name)
            raise CaptureError(f"cannot capture on {name}: libpcap opened something else")
        # libpcap does not: a program that is executed would capture for as long as it lives.
        os.set_inheritable(self._fileno, False)
        try:
            keep_headers(self._fileno, snaplen_bytes, loopback=known[name].is_loopback)
        except OSError as error:
            opened.close()
            raise CaptureError(f"cannot capture on {name}: {error.strerror}") from error
        super().__init__(name, opened)

    def __enter__(self) -> LiveHandle:
        return self

    def fileno(self) -> int:
        """To wait on with ``select`` or ``poll``. Raises ``CaptureError`` once closed.

        After the interface was deleted it signals an error once, then never again.
        """
        if self._closed:
            raise CaptureError(f"cannot wait for {self.name}: it is closed")
        return self._fileno

    def read(self, callback: PacketCallback, max_packets: int = BATCH_PACKETS) -> int:
        """Hand over what has arrived, ``max_packets`` at most; return how many. Never waits.

        An exception of the callback is raised from here, after the rest of the batch. Raises
        ``InterfaceGoneError`` if the interface was deleted, ``CaptureError`` if the handle is
        closed, and ``UsageError`` inside another ``read()`` of the same handle.
        """
        count, said = self._dispatch(callback, max_packets)
        if count < 0:
            raise InterfaceGoneError(f"cannot read {self.name} any more: {said or 'it is gone'}")
        return count

    def dropped_packets(self) -> int:
        """Packets that the kernel dropped since the start because its buffer was full.

        Only grows, and stays what it was after ``close()`` and while a ``read()`` is under way.
        """
        if self._lock.acquire(blocking=False):
            try:
                if self._pcap is not None:
                    # The first figure, received, counts the dropped ones too; the third is the
                    # network card's. All are 32 bits wide in libpcap.
                    figure = int(self._pcap.stats()[1])
                    self._dropped_packets += (figure - self._last_drop_figure) % _COUNTER_WRAP
                    self._last_drop_figure = figure
            except OSError:
                # The interface is gone: the last figure stands.
                pass
            finally:
                self._lock.release()
                self._release()
        return self._dropped_packets

    @staticmethod
    def _refuse_file(name: str) -> None:
        # libpcap is asked for a file first, and a pipe would block it. A directory does no harm.
        if os.path.lexists(name) and not os.path.isdir(name):
            raise CaptureError(
                f"cannot capture on {name}: a file of that name is in the working directory and "
                "would be read in its place; change to another directory"
            )


class FileHandle(_Handle):
    """Packets of a capture file, pcap or pcapng.

    Raises ``UsageError`` for what cannot be a path, ``UnsupportedError`` where no ``pcap`` module
    is installed, and ``CaptureError`` for a file that cannot be opened, is not a capture, or whose
    link type cannot be decoded.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = os.fspath(path)
        if not self._path or "\0" in self._path:
            raise UsageError(f"cannot read {self._path!r}: that is no path")
        super().__init__(self._path, self._open())
        self._ended = False

    def __enter__(self) -> FileHandle:
        return self

    def read(self, callback: PacketCallback, max_packets: int = BATCH_PACKETS) -> int:
        """Hand over the next ``max_packets`` at most; return how many, 0 at the end of the file.

        Raises ``CaptureError`` where the file is damaged or cut short, after what came before that
        was handed over; also if the handle is closed. An exception of the callback is raised from
        here, after the rest of the batch.
        """
        if self._ended and not self._closed:
            return 0
        count, said = self._dispatch(callback, max_packets)
        if count < 0:
            self._ended = True
            found = self._count_packets()
            what = "it is cut short" if "truncated" in said else "it is damaged"
            raise CaptureError(
                f"cannot read all of {self.name}: {what} after {found} packets ({said})"
            )
        return count

    def _open(self) -> Any:
        module = _module()
        try:
            # Not blocking, for a pipe without a writer.
            descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except UnicodeEncodeError as error:
            raise UsageError(f"cannot read {self._path!r}: {error.reason}") from error
        except OSError as error:
            raise CaptureError(f"cannot read {self._path}: {error.strerror}") from error
        try:
            mode = os.fstat(descriptor).st_mode
            if not stat.S_ISREG(mode):
                what = "a directory" if stat.S_ISDIR(mode) else "not a regular file"
                raise CaptureError(f"cannot read {self._path}: it is {what}")
            magic = os.read(descriptor, 4)
            if magic not in _MAGICS:
                what = "not a capture file (pcap or pcapng)" if magic else "empty"
                raise CaptureError(f"cannot read {self._path}: it is {what}")
            # By its number: "-" would be standard input, a device's name could be the device, and
            # a name that is not UTF-8 could not be said at all.
            return module.pcap(name=f"/proc/self/fd/{descriptor}")
        except OSError as error:
            # libpcap's words are about a device, which it looked for when the file would not do.
            raise CaptureError(f"cannot read {self._path}: its header is damaged") from error
        finally:
            os.close(descriptor)

    def _count_packets(self) -> int:
        # dispatch() does not tell how many packets came before the one that failed.
        count = itertools.count()
        again = self._open()
        try:
            again.dispatch(-1, lambda *_: next(count))
        finally:
            again.close()
        return next(count)


def probe() -> Feature:
    """Whether this process may capture here, by asking the kernel; by which version of what."""
    found = promise()
    if found.support is not Support.YES:
        return found
    return features.yes(found.name, f"{found.reason}; {_describe(_module())}")


def promise() -> Feature:
    """The same without the versions, which take longer to find than all the rest."""
    name = "python counting"
    try:
        _module()
    except UnsupportedError as error:
        return features.no(name, str(error), _MODULE_REMEDY)
    try:
        ask_for_packets()
    except PermissionError:
        return features.no(name, "a packet socket needs CAP_NET_RAW", _ACCESS_REMEDY)
    except OSError as error:
        if error.errno in (errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT):
            return features.no(name, f"the kernel has no packet sockets: {error.strerror}")
        return features.unknown(name, f"a packet socket could not be opened: {error.strerror}")
    return features.yes(name, "packet sockets may be opened")


def _require_access(name: str) -> None:
    try:
        ask_for_packets()
    except PermissionError as error:
        raise AccessError(
            f"cannot capture on {name}: CAP_NET_RAW is missing; {_ACCESS_REMEDY}"
        ) from error
    except OSError as error:
        raise CaptureError(f"cannot capture on {name}: {error.strerror}") from error


def _module() -> ModuleType:
    try:
        # Late, so that procnet can be imported where libpcap is not.
        import pcap
    except (ImportError, OSError) as error:
        raise UnsupportedError(
            f"no pcap module can be loaded ({error}); {_MODULE_REMEDY}"
        ) from error
    # A file or directory named pcap on the path would be a module, too.
    if not hasattr(pcap, "pcap"):
        raise UnsupportedError(f"module pcap is neither pypcap nor pcap-ct; {_MODULE_REMEDY}")
    module: ModuleType = pcap
    return module


def _describe(module: ModuleType) -> str:
    from importlib import metadata  # 5 ms, for the doctor alone

    for distribution in ("pypcap", "pcap-ct"):
        try:
            found = f"{distribution} {metadata.version(distribution)}"
        except metadata.PackageNotFoundError:
            continue
        break
    else:
        found = "a pcap module of unknown version"
    library = getattr(module, "lib_version", None)
    return f"{found}, {_text(library())}" if library else found


def _reason(error: OSError) -> str:
    """What libpcap said, out of the sentence that the module puts around it."""
    said = _text(error.args[0]) if error.args else str(error)
    _, _, inner = said.partition("Error returned by packet capture library was ")
    return inner.removeprefix("b").strip("'\"") or said


def _text(said: object) -> str:
    return said.decode("utf-8", "replace") if isinstance(said, bytes) else str(said)
