"""Where the C sources of the BPF programs are."""

from __future__ import annotations

from pathlib import Path

_HERE = Path(__file__).resolve().parent


def source_directory(package: Path = _HERE) -> Path:
    """The directory with kprobes.bcc.c: ``src`` in the installed package, ``bpf`` in a checkout.

    Raises FileNotFoundError if there is neither.
    """
    for directory in (package / "src", package.parent.parent / "bpf"):
        if (directory / "kprobes.bcc.c").is_file():
            return directory
    raise FileNotFoundError(f"kprobes.bcc.c is not in {package / 'src'}: reinstall procnet")
