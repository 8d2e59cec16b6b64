"""Where the command's output goes, and what it cannot hold."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

CAPTURE = str(Path(__file__).parent.parent / "data" / "ethernet.pcap")
PROGRAM = """
import sys
from procnet import cli
from procnet.report import as_text
cli.report_as_text = lambda report: "caf\\u00e9 \\u2026\\n"
sys.exit(cli.main())
"""


def run(shell: str, **environment: str) -> tuple[int, bytes, bytes]:
    done = subprocess.run(
        ["sh", "-c", shell, sys.executable, CAPTURE],
        capture_output=True, timeout=60, env={**os.environ, **environment},
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


def test_an_encoding_that_lacks_a_character_gets_an_escape() -> None:
    shell = f'exec "$0" -c \'{PROGRAM}\' report --read "$1"'
    assert run(shell, PYTHONIOENCODING="ascii") == (0, rb"caf\xe9 \u2026" + b"\n", b"")


@pytest.mark.parametrize(
    "target, words", [(">&-", b"standard output is closed"), ("> /dev/full", b"No space left")]
)
def test_output_that_cannot_be_written_is_one_line_and_status_1(target: str, words: bytes) -> None:
    status, _, error = run(f'exec "$0" -m procnet report --read "$1" {target}')
    assert status == 1
    assert words in error and error.count(b"\n") == 1


@pytest.mark.parametrize("arguments", ["report --read {}", "report --interface {}", "report --x{}"])
def test_no_error_steers_the_terminal(arguments: str) -> None:
    words = arguments.format('"$(printf "a\\033[2Jb")"')
    status, output, error = run(f'exec "$0" -m procnet {words}')
    assert status in (1, 2) and output == b""
    assert b"\x1b" not in error and rb"a\x1b[2Jb" in error


def test_no_warning_steers_the_terminal() -> None:
    program = """
import logging, sys
from procnet import cli
cli.procnet.read_capture = lambda *_, **__: logging.getLogger("procnet").warning("a\\x1b[2Jb")
cli._print_report = lambda *_: None
sys.exit(cli.main(["report", "--read", "x"]))
"""
    assert run(f"exec \"$0\" -c '{program}'") == (0, b"", b"procnet: a\\x1b[2Jb\n")


def test_a_reader_that_has_enough_is_no_error() -> None:
    assert run('"$0" -m procnet report --read "$1" | true') == (0, b"", b"")
