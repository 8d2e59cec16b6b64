"""bpf/procnet.h and its mirror say the same."""

from __future__ import annotations

import struct
import subprocess
from pathlib import Path
from typing import Any

import pytest

from procnet.bpf import layout
from procnet.bpf.source import source_directory
from procnet.capture.handle import SNAPLEN_BYTES
from procnet.errors import LayoutError
from procnet.model import EventKind

MEMBERS = {  # of layout.RawEvent → in C
    "local_address": "tuple.local_address",
    "remote_address": "tuple.remote_address",
    "local_port": "tuple.local_port",
    "remote_port": "tuple.remote_port",
    "protocol": "tuple.protocol",
}


def told_by_c(tmp_path: Path, expressions: list[str]) -> list[int]:
    prints = "".join(f'printf("%llu\\n", (unsigned long long)({e}));' for e in expressions)
    program = tmp_path / "told.c"
    program.write_text(
        "#include <stddef.h>\n#include <stdio.h>\n#include <procnet.h>\n"
        f"int main(void) {{ {prints} return 0; }}"
    )
    # -Wpadded: no byte of a record is left to the compiler.
    command = ["gcc", "-Wall", "-Wextra", "-Wpadded", "-Werror", f"-I{source_directory()}"]
    subprocess.run([*command, "-o", tmp_path / "told", program], check=True)
    told = subprocess.check_output([tmp_path / "told"], text=True)
    return [int(line) for line in told.split()]


@pytest.mark.parametrize(
    ("struct_name", "record", "members"),
    [
        ("struct procnet_owner_event", layout.OWNER_EVENT, layout.RawEvent),
        ("struct procnet_process", layout.PROCESS, layout.RawProcess),
    ],
)
def test_every_member_is_where_the_header_has_it(
    tmp_path: Path, struct_name: str, record: struct.Struct, members: Any
) -> None:
    names = [MEMBERS.get(name, name) for name in members._fields]
    offsets = told_by_c(tmp_path, [f"offsetof({struct_name}, {name})" for name in names])
    sizes = told_by_c(tmp_path, [f"sizeof((({struct_name} *)0)->{name})" for name in names])

    for name, offset, size in zip(members._fields, offsets, sizes, strict=True):
        # A record of zeros with ones where the header has this member …
        raw_record = bytearray(record.size)
        raw_record[offset : offset + size] = b"\x01" * size
        # … shows up in the mirror in this member, whole, and nowhere else.
        raw = members._make(record.unpack(raw_record))
        assert {field for field, value in raw._asdict().items() if any(as_bytes(value))} == {name}
        value = getattr(raw, name)
        expected = b"\x01" * size
        assert value == (expected if isinstance(value, bytes) else int.from_bytes(expected, "big"))


def as_bytes(value: int | bytes) -> bytes:
    return value if isinstance(value, bytes) else value.to_bytes(8, "little")


FLAGS = ("KERNEL", "CLOSES", "SENDS", "RECEIVES", "SHARED")


def test_the_numbers_are_those_of_the_header(tmp_path: Path) -> None:
    size, process_size, version, flags_at, *numbers = told_by_c(
        tmp_path,
        ["sizeof(struct procnet_owner_event)", "sizeof(struct procnet_process)"]
        + ["PROCNET_LAYOUT", "offsetof(struct procnet_owner_event, flags)"]
        + [f"PROCNET_FLAG_{name}" for name in FLAGS]
        + [f"PROCNET_{kind.name}" for kind in EventKind],
    )
    assert size == layout.OWNER_EVENT.size
    assert process_size == layout.PROCESS.size
    assert version == layout.LAYOUT
    assert flags_at == layout.FLAGS_AT
    assert numbers == [*(getattr(layout, f"FLAG_{name}") for name in FLAGS), *EventKind]


def test_a_contract_of_another_layout_or_of_other_sizes_is_refused() -> None:
    ours = struct.pack("=III", layout.LAYOUT, 112, 48)
    layout.check_contract("it", ours + b"padding", (112, 48))
    others = (struct.pack("=III", layout.LAYOUT + 1, 112, 48), ours[:4] + b"x" + ours[5:])
    for contract in (b"", ours[:8], *others):
        with pytest.raises(LayoutError, match="it has another layout"):
            layout.check_contract("it", contract, (112, 48))


def test_a_frame_that_is_handed_up_is_kept_as_far_as_others_are() -> None:
    source = (source_directory() / "count.bpf.c").read_text()
    assert f"\n#define HAND_UP {SNAPLEN_BYTES}\n" in source
