"""The part of libbpf (1.0 or later) that we use, typed, every return checked.

libbpf writes its warnings, and what the kernel's verifier said, to standard error unless it is
given a function to call: while one of ours runs they go into the error that is raised.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import mmap
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

from procnet.errors import LoadError, UnsupportedError

_SONAME = "libbpf.so.1"
_LOG_BYTES = 1 << 16
_LOG_KEPT = 40
_WARN = 0  # enum libbpf_print_level
_PROG_TYPE_TRACING = 26  # enum bpf_prog_type
# As much as an iterator writes at once (bpf_seq_read()): no record of it is in two pieces.
_READ_BYTES = 8 * mmap.PAGESIZE

# int (*)(enum libbpf_print_level, const char *, va_list); a va_list is passed as a pointer on
# x86-64 (an array) and on arm64 (a structure of more than 16 bytes) alike.
_PRINT = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)

_POINTER, _TEXT, _INT = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int
# descriptor, where to begin, where it ended, keys, values, how many, options
_BATCH = (_INT, _POINTER, _POINTER, _POINTER, _POINTER, ctypes.POINTER(ctypes.c_uint32), _POINTER)
_SIGNATURES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "libbpf_set_print": (_POINTER, (_POINTER,)),
    "libbpf_probe_bpf_prog_type": (_INT, (_INT, _POINTER)),
    "bpf_object__open_mem": (_POINTER, (_TEXT, ctypes.c_size_t, _POINTER)),
    "bpf_object__load": (_INT, (_POINTER,)),
    "bpf_object__close": (None, (_POINTER,)),
    "bpf_object__next_program": (_POINTER, (_POINTER, _POINTER)),
    "bpf_object__find_map_by_name": (_POINTER, (_POINTER, _TEXT)),
    "bpf_program__name": (_TEXT, (_POINTER,)),
    "bpf_program__set_autoload": (_INT, (_POINTER, ctypes.c_bool)),
    "bpf_program__attach": (_POINTER, (_POINTER,)),
    "bpf_program__attach_cgroup": (_POINTER, (_POINTER, _INT)),
    "bpf_program__attach_iter": (_POINTER, (_POINTER, _POINTER)),
    "bpf_link__fd": (_INT, (_POINTER,)),
    "bpf_link__destroy": (_INT, (_POINTER,)),
    "bpf_iter_create": (_INT, (_INT,)),
    "bpf_map__fd": (_INT, (_POINTER,)),
    "bpf_map__set_max_entries": (_INT, (_POINTER, ctypes.c_uint32)),
    "bpf_map__set_autocreate": (_INT, (_POINTER, ctypes.c_bool)),
    "bpf_map__initial_value": (_POINTER, (_POINTER, ctypes.POINTER(ctypes.c_size_t))),
    "bpf_map__reuse_fd": (_INT, (_POINTER, _INT)),
    "bpf_program__fd": (_INT, (_POINTER,)),
    "bpf_prog_test_run_opts": (_INT, (_INT, _POINTER)),
    "bpf_obj_get_info_by_fd": (_INT, (_INT, _POINTER, ctypes.POINTER(ctypes.c_uint32))),
    "bpf_map_update_elem": (_INT, (_INT, _POINTER, _POINTER, ctypes.c_uint64)),
    "bpf_map_lookup_batch": (_INT, _BATCH),
    "bpf_map_lookup_and_delete_batch": (_INT, _BATCH),
    "libbpf_num_possible_cpus": (_INT, ()),
}

# Whom libbpf calls is one for the whole process.
_print_lock = threading.Lock()


@functools.cache
def load_library() -> Any:
    """libbpf with its signatures. Raises UnsupportedError if it is not installed."""
    try:
        library = ctypes.CDLL(_SONAME, use_errno=True)
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError) as error:
        raise UnsupportedError(f"{_SONAME} cannot be used: {error}; apt install libbpf1") from error
    return library


@functools.cache
def _vsnprintf() -> Any:
    function = ctypes.CDLL(None).vsnprintf
    function.argtypes = (_POINTER, ctypes.c_size_t, _POINTER, _POINTER)
    return function


def check_library() -> None:
    """Raises UnsupportedError if libbpf is not installed."""
    load_library()


@contextlib.contextmanager
def _collected() -> Iterator[list[str]]:
    """What libbpf has to say in the meantime."""
    library, vsnprintf = load_library(), _vsnprintf()
    lines: list[str] = []

    def take(level: int, text: int, arguments: int) -> int:
        if level == _WARN:
            buffer = ctypes.create_string_buffer(_LOG_BYTES)
            vsnprintf(buffer, _LOG_BYTES, text, arguments)
            lines.extend(buffer.value.decode("utf-8", "backslashreplace").splitlines())
        return 0

    callback = _PRINT(take)
    with _print_lock:
        before = library.libbpf_set_print(ctypes.cast(callback, _POINTER))
        try:
            yield lines
        finally:
            library.libbpf_set_print(before)


def _refusal(what: str, number: int, lines: list[str]) -> LoadError:
    log = "\n".join(line.removeprefix("libbpf: ") for line in lines[-_LOG_KEPT:])
    message = f"{what}: {os.strerror(number)}" + (f"\n{log}" if log else "")
    # A program that is refused says so with EACCES; EPERM is the lack of a privilege, or a kernel
    # that does not let anybody attach such a thing.
    return LoadError(message)


def can_trace_functions() -> bool:
    """Does this kernel load fentry programs? By loading one; tp_btf and iter are no proof."""
    library = load_library()
    with _collected():
        return bool(library.libbpf_probe_bpf_prog_type(_PROG_TYPE_TRACING, None) == 1)


class ProgramInfo(ctypes.Structure):
    """The end of struct bpf_prog_info as of 5.16 (aba64c7da983), which later ones begin with."""

    _fields_ = (
        ("_before", ctypes.c_uint8 * 208),
        ("recursion_misses", ctypes.c_uint64),
        ("verified_insns", ctypes.c_uint32),
    )


class _TestRun(ctypes.Structure):
    # struct bpf_test_run_opts of libbpf 1.0
    _fields_ = (
        ("size", ctypes.c_size_t),
        ("data_in", ctypes.c_char_p),
        ("data_out", ctypes.c_void_p),
        ("data_size_in", ctypes.c_uint32),
        ("data_size_out", ctypes.c_uint32),
        ("ctx_in", ctypes.c_void_p),
        ("ctx_out", ctypes.c_void_p),
        ("ctx_size_in", ctypes.c_uint32),
        ("ctx_size_out", ctypes.c_uint32),
        ("result", ctypes.c_uint32),
        ("repeat", ctypes.c_int),
        ("duration_ns", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("cpu", ctypes.c_uint32),
        ("batch_size", ctypes.c_uint32),
    )


class _IterateMap(ctypes.Structure):
    # struct bpf_iter_attach_opts of libbpf 1.0, and of union bpf_iter_link_info the map
    _fields_ = (
        ("size", ctypes.c_size_t),
        ("information", ctypes.c_void_p),
        ("information_bytes", ctypes.c_uint32),
    )


class BpfObject:
    """A BPF object file: open, choose, load, attach. ``close()`` gives everything back."""

    def __init__(self, image: bytes) -> None:
        self._library = load_library()
        self._links: list[int] = []
        self._programs: dict[str, int] = {}
        with _collected() as lines:
            self._object: int | None = self._library.bpf_object__open_mem(image, len(image), None)
            number = ctypes.get_errno()
        if not self._object:
            raise _refusal("libbpf cannot read the object file", number, lines)
        program = None
        while program := self._library.bpf_object__next_program(self._object, program):
            self._programs[self._library.bpf_program__name(program).decode()] = program

    def choose(self, programs: frozenset[str]) -> None:
        """Loads these programs and no others. Before load()."""
        for name, program in self._programs.items():
            self._check(f"choose {name}", self._library.bpf_program__set_autoload, program,
                        name in programs)  # fmt: skip

    def resize(self, map_name: str, entries: int) -> None:
        """Another size for a map. Before load()."""
        self._check(f"resize the map {map_name}", self._library.bpf_map__set_max_entries,
                    self._map(map_name), entries)  # fmt: skip

    def leave_out(self, map_name: str) -> None:
        """Does not make a map, which no program that is loaded may reach. Before load()."""
        self._check(f"leave out the map {map_name}", self._library.bpf_map__set_autocreate,
                    self._map(map_name), False)  # fmt: skip

    def initial_value(self, map_name: str) -> bytes:
        """What a section of constants holds."""
        size = ctypes.c_size_t()
        place = self._library.bpf_map__initial_value(self._map(map_name), ctypes.byref(size))
        return ctypes.string_at(place, size.value) if place else b""

    def set_constant(self, map_name: str, value: bytes) -> None:
        """What a section of one constant shall hold. Before load()."""
        size = ctypes.c_size_t()
        place = self._library.bpf_map__initial_value(self._map(map_name), ctypes.byref(size))
        if not place or size.value < len(value):
            raise LoadError(f"the object file has no room in {map_name}")
        ctypes.memmove(place, value, len(value))

    def load(self) -> None:
        """Into the kernel. Raises LoadError with what the verifier said; failed_program() helps."""
        self._check("the kernel refused the object", self._library.bpf_object__load, self._object)

    def attach(self, program: str) -> None:
        """A tracing program, where its section says."""
        self._links.append(self._link(program, self._library.bpf_program__attach))

    def attach_cgroup(self, program: str, descriptor: int) -> None:
        """A cgroup program."""
        attach = self._library.bpf_program__attach_cgroup
        self._links.append(self._link(program, attach, descriptor))

    def run_iterator(self, program: str, map_name: str = "") -> Iterator[bytes]:
        """Runs an iterator, over a map if it is one for maps, while what it writes is taken: in
        pieces, each of whole records. Raises LoadError.
        """
        if map_name:
            of_map = ctypes.c_uint32(self.map_descriptor(map_name))
            options = _IterateMap(
                ctypes.sizeof(_IterateMap), ctypes.addressof(of_map), ctypes.sizeof(of_map)
            )
            attach = self._library.bpf_program__attach_iter
            link = self._link(program, attach, ctypes.byref(options))
        else:
            link = self._link(program, self._library.bpf_program__attach)
        try:
            with _collected() as lines:
                descriptor = self._library.bpf_iter_create(self._library.bpf_link__fd(link))
            if descriptor < 0:
                raise _refusal(f"run {program}", -descriptor, lines)
            with os.fdopen(descriptor, "rb", buffering=0) as stream:
                # None, EAGAIN, after a million objects for which it wrote nothing: to be read on
                # (MAX_ITER_OBJECTS, kernel/bpf/bpf_iter.c).
                yield from filter(None, iter(lambda: stream.read(_READ_BYTES), b""))
        except OSError as error:
            raise _refusal(f"read {program}", error.errno or 0, []) from error
        finally:
            self._library.bpf_link__destroy(link)

    def map_descriptor(self, name: str) -> int:
        """Ours until close()."""
        descriptor: int = self._library.bpf_map__fd(self._map(name))
        if descriptor < 0:
            raise LoadError(f"the map {name}: {os.strerror(-descriptor)}")
        return descriptor

    def program_descriptor(self, name: str) -> int:
        """Ours until close()."""
        descriptor: int = self._library.bpf_program__fd(self._programs[name])
        if descriptor < 0:
            raise LoadError(f"the program {name}: {os.strerror(-descriptor)}")
        return descriptor

    def reuse_map(self, name: str, descriptor: int) -> None:
        """The map of another object in the place of this one's. Before load()."""
        self._check(f"use another {name}", self._library.bpf_map__reuse_fd, self._map(name),
                    descriptor)  # fmt: skip

    def run_program(self, name: str, frame: bytes, repeat: int = 1) -> tuple[int, int]:
        """Runs a program on an Ethernet frame; what it returned, and the mean time of a run, ns."""
        options = _TestRun(
            size=ctypes.sizeof(_TestRun), data_in=frame, data_size_in=len(frame), repeat=repeat
        )
        self._check(f"run {name}", self._library.bpf_prog_test_run_opts,
                    self.program_descriptor(name), ctypes.byref(options))  # fmt: skip
        return options.result, options.duration_ns

    def program_info(self, name: str) -> ProgramInfo:
        """What the kernel knows of a program that is loaded; fields that it does not know are 0."""
        info = ProgramInfo()
        size = ctypes.c_uint32(ctypes.sizeof(info))
        # Asked ten times a second, and libbpf has nothing to say to it: nobody listens.
        result = self._library.bpf_obj_get_info_by_fd(
            self.program_descriptor(name), ctypes.byref(info), ctypes.byref(size)
        )
        if result < 0:
            raise _refusal(f"ask about {name}", -result, [])
        return info

    def close(self) -> None:
        """Detaches and unloads everything. May be called again."""
        if self._object is None:
            return
        for link in reversed(self._links):
            self._library.bpf_link__destroy(link)
        self._links.clear()
        self._library.bpf_object__close(self._object)
        self._object = None

    def _map(self, name: str) -> int:
        found: int | None = self._library.bpf_object__find_map_by_name(self._object, name.encode())
        if not found:
            raise LoadError(f"the object file has no map {name}")
        return found

    def _link(self, program: str, attach: Callable[..., int | None], *arguments: Any) -> int:
        with _collected() as lines:
            link = attach(self._programs[program], *arguments)
            number = ctypes.get_errno()
        if not link:
            raise _refusal(f"attach {program}", number, lines)
        return link

    def _check(self, what: str, function: Callable[..., int], *arguments: Any) -> None:
        with _collected() as lines:
            result = function(*arguments)
        if result < 0:
            raise _refusal(what, -result, lines)
