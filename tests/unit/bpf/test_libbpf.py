"""The binding, as far as it goes without a privilege: files that are none, and the messages."""

from __future__ import annotations

import ctypes

import pytest

from procnet.bpf import libbpf
from procnet.errors import LoadError, UnsupportedError


@pytest.fixture(autouse=True)
def installed() -> None:
    try:
        libbpf.check_library()
    except UnsupportedError as error:
        pytest.skip(str(error))


def test_what_is_no_object_file_is_refused_and_nothing_is_printed(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(LoadError, match="cannot read the object file") as raised:
        libbpf.BpfObject(b"\x7fELF and no more")
    assert "ELF" in str(raised.value)
    assert capfd.readouterr() == ("", "")


def test_what_libbpf_says_is_collected_and_its_own_printer_comes_back() -> None:
    library = libbpf.load_library()
    mine = libbpf._PRINT(lambda _level, _format, _arguments: 0)
    before = library.libbpf_set_print(ctypes.cast(mine, ctypes.c_void_p))
    try:
        with libbpf._collected() as lines:
            assert not library.bpf_object__open_mem(b"no", 2, None)
        assert lines
        assert all(line.startswith("libbpf: ") for line in lines)
        after = library.libbpf_set_print(ctypes.cast(mine, ctypes.c_void_p))
        assert after == ctypes.cast(mine, ctypes.c_void_p).value
    finally:
        library.libbpf_set_print(before)


def test_a_library_that_is_missing_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libbpf, "_SONAME", "libnot-there.so.1")
    libbpf.load_library.cache_clear()
    try:
        with pytest.raises(UnsupportedError, match="apt install libbpf1"):
            libbpf.check_library()
    finally:
        libbpf.load_library.cache_clear()
