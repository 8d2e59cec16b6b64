"""The rules of the house, as tests: docs of a tree cannot be trusted, this can.

A rule is a function that takes a module and yields what it finds wrong. Each is tried on a sample
that breaks it, so that a rule that can find nothing fails too. An exception to a rule is argued for
in the lists at the top.
"""

from __future__ import annotations

import ast
import configparser
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

TOP = Path(__file__).resolve().parents[1]

# -- what may be, and why ---------------------------------------------------------------------

FLOOR = frozenset({"model", "errors", "features", "kernel_text", "netlink"})
SOURCES = frozenset({"capture", "bpf", "sockets"})
CORRIDOR = frozenset(
    {"monitor", "edge", "engines", "ladder", "witnesses", "translated", "offline", "look"}
    | {"watch", "beside"}
)
"""monitor.py and its kin: they open the doors in order, and no room knows of them."""

MAY_IMPORT = {
    # Captures count, the kernel names, sockets fill in, the ledger joins, the report tells.
    "model": frozenset(),
    "errors": frozenset(),
    "features": frozenset({"model", "errors"}),
    "kernel_text": frozenset(),
    "netlink": frozenset(),
    "capture": FLOOR,
    "bpf": FLOOR,
    "sockets": FLOOR,
    "ledger": FLOOR,
    "report": FLOOR | {"ledger"},
    "export": FLOOR | {"report"},
    **{each: FLOOR | SOURCES | CORRIDOR | {"ledger", "report"} for each in CORRIDOR},
    "testing": FLOOR | SOURCES | CORRIDOR | {"ledger", "report"},
    "cli": FLOOR | CORRIDOR | {"", "report", "export"},
    "__init__": FLOOR | SOURCES | CORRIDOR | {"ledger", "report", "export"},
    "__main__": frozenset({"cli"}),
}
"""Room → the rooms it may import from; ``""`` is the front door, ``import procnet`` itself."""

ONLY_IMPORTER: dict[str, str | tuple[str, ...]] = {
    "pcap": "procnet/capture/handle.py",
    "dpkt": "procnet/capture/decode.py",
    "bcc": "procnet/bpf/bcc_attach.py",
    "ctypes": ("procnet/bpf/", "procnet/sockets/namespace.py"),
}
REQUIREMENTS = frozenset({"pcap", "dpkt", "bcc", "cachetools"})
HEAVY = ("pcap", "dpkt", "bcc", "numpy", "psutil")

MAX_MODULE_LINES = 400
MAX_FUNCTION_LINES = 60
MAX_EXAMPLE_LINES = 60
LONG_BY_REASON: dict[str, str] = {
    # "procnet/room/module.py" or "procnet/room/module.py:function": "why it may be longer"
}

CATCHES_EVERYTHING = {
    "procnet/edge.py": "a thread's edge: there it becomes a counted loss and a line in the log",
}
TALKS_TO_A_PERSON = {
    "procnet/cli.py": "the program",
    "procnet/__main__.py": "the program",
    "procnet/bpf/bcc_attach.py": "a script that runs in a process of its own: its exit status and "
    "standard error are its answer, and bcc's exit handlers must not run",
}

# -- reading ----------------------------------------------------------------------------------


class Module(NamedTuple):
    """A Python file. ``path`` is relative to the top directory."""

    path: str
    source: str
    tree: ast.Module

    @property
    def room(self) -> str:
        """The first name below ``procnet``: a directory or a file without its suffix."""
        return Path(self.path).parts[1].removesuffix(".py")


def parsed(path: str, source: str) -> Module:
    return Module(path, source, ast.parse(source, path))


def python_files(directory: str) -> list[Module]:
    paths = sorted((TOP / directory).rglob("*.py"))
    return [parsed(str(path.relative_to(TOP)), path.read_text()) for path in paths]


class Import(NamedTuple):
    """``from module import name``; ``name`` is empty for ``import module``."""

    line: int
    module: str
    name: str


def imports(module: Module) -> Iterator[Import]:
    """Every import anywhere in the file, relative ones resolved, and import_module("…")."""
    package = Path(module.path).parent.parts
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(node.lineno, alias.name, "")
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            origin = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                yield Import(node.lineno, origin, alias.name)
        elif isinstance(node, ast.Call) and called(node) in ("import_module", "__import__"):
            for name in node.args[:1]:
                if isinstance(name, ast.Constant):
                    yield Import(node.lineno, str(name.value), "")


def called(node: ast.Call) -> str:
    """The dotted name that is called, without the module for import_module; or nothing."""
    name = ast.unparse(node.func)
    return name.removeprefix("importlib.")


# -- the rules --------------------------------------------------------------------------------


def wrong_direction(module: Module) -> Iterator[str]:
    """Imports that go against the sentence, and private names of another room."""
    allowed = MAY_IMPORT.get(module.room)
    if allowed is None:
        yield f"{module.path}: a room that the design does not know"
        return
    for line, origin, name in imports(module):
        parts = (*origin.split("."), *([name] if name else []))
        if parts[0] != "procnet":
            continue
        room = parts[1] if len(parts) > 1 else ""
        if room not in MAY_IMPORT:  # a name of the front door: from procnet import Monitor
            room = ""
        if room == module.room and room != "":
            continue
        if room not in allowed:
            yield f"{module.path}:{line}: {module.room} may not import {'.'.join(parts)}"
        elif any(re.match(r"_(?!_)", part) for part in parts):
            yield f"{module.path}:{line}: {'.'.join(parts)} is private to its room"


def foreign_imports(module: Module) -> Iterator[str]:
    """Requirements outside their one importer, and imports that are no requirement."""
    for line, origin, _ in imports(module):
        top = origin.split(".")[0]
        owner = ONLY_IMPORTER.get(top)
        if owner and not module.path.startswith(owner):
            yield f"{module.path}:{line}: only {owner} may import {top}"
        elif top not in sys.stdlib_module_names | REQUIREMENTS | {"procnet"}:
            yield f"{module.path}:{line}: {top} is no requirement of procnet's"


def too_long(module: Module) -> Iterator[str]:
    """Modules and functions over the limit that the list does not argue for."""
    lines = module.source.count("\n")
    if lines > MAX_MODULE_LINES and module.path not in LONG_BY_REASON:
        yield f"{module.path}: {lines} lines"
    for node in ast.walk(module.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > MAX_FUNCTION_LINES and f"{module.path}:{node.name}" not in LONG_BY_REASON:
                yield f"{module.path}:{node.name}: {lines} lines"


def catches_everything(module: Module) -> Iterator[str]:
    """Handlers that catch all errors, unless they end by raising the same one again."""
    if module.path in CATCHES_EVERYTHING:
        return
    for node in ast.walk(module.tree):
        if not isinstance(node, ast.ExceptHandler):
            continue
        caught = {"BaseException"}
        if node.type is not None:
            caught = {ast.unparse(each) for each in getattr(node.type, "elts", [node.type])}
        last = node.body[-1]
        raised_again = isinstance(last, ast.Raise) and last.exc is None
        if caught & {"Exception", "BaseException"} and not raised_again:
            yield f"{module.path}:{node.lineno}: catches everything"


def talks_to_a_person(module: Module) -> Iterator[str]:
    """What a library leaves to the program: output, exit, signals, the configuration of logs."""
    if module.path in TALKS_TO_A_PERSON:
        return
    forbidden = {
        "print", "input", "exit", "quit", "sys.exit", "os._exit", "os.abort", "SystemExit",
        "signal.signal", "signal.setitimer", "signal.alarm", "signal.set_wakeup_fd",
        "logging.basicConfig", "sys.stdout.write", "sys.stderr.write",
    }  # fmt: skip
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Call) and called(node) in forbidden:
            yield f"{module.path}:{node.lineno}: {called(node)}"
        elif isinstance(node, ast.ImportFrom) and node.module in ("signal", "sys", "os"):
            for alias in node.names:
                if f"{node.module}.{alias.name}" in forbidden:
                    yield f"{module.path}:{node.lineno}: {node.module}.{alias.name}"


Rule = Callable[[Module], Iterator[str]]


@pytest.mark.parametrize(
    "rule", [wrong_direction, foreign_imports, too_long, catches_everything, talks_to_a_person]
)
def test_the_library_keeps_the_rule(rule: Rule) -> None:
    assert [found for module in python_files("procnet") for found in rule(module)] == []


@pytest.mark.parametrize(
    ("rule", "path", "source"),
    [
        (wrong_direction, "procnet/model.py", "from procnet import errors"),
        (wrong_direction, "procnet/model.py", "from . import errors"),
        (wrong_direction, "procnet/capture/handle.py", "from procnet.bpf.events import x"),
        (wrong_direction, "procnet/capture/handle.py", "from ..sockets import procfs"),
        (wrong_direction, "procnet/bpf/kprobe.py", "def f():\n    import procnet.capture.decode"),
        (wrong_direction, "procnet/sockets/diag.py", "import procnet"),
        (wrong_direction, "procnet/ledger/ledger.py", "from procnet.sockets.procfs import scan"),
        (wrong_direction, "procnet/ledger/ledger.py", "from procnet.report import Report"),
        (wrong_direction, "procnet/report/report.py", "import procnet.monitor"),
        (wrong_direction, "procnet/monitor.py", "from procnet.cli import main"),
        (wrong_direction, "procnet/monitor.py", "from procnet.ledger.owners import _slot"),
        (wrong_direction, "procnet/monitor.py", "from procnet.ledger._owners import slot"),
        (wrong_direction, "procnet/monitor.py", "import procnet.testing"),
        (wrong_direction, "procnet/sockets/procfs.py", "from procnet import ladder"),
        (wrong_direction, "procnet/cli.py", "from procnet.ledger.ledger import Ledger"),
        (wrong_direction, "procnet/cli.py", "importlib.import_module('procnet.capture.handle')"),
        (wrong_direction, "procnet/attic/box.py", ""),
        (foreign_imports, "procnet/capture/counter.py", "import dpkt.ip"),
        (foreign_imports, "procnet/capture/decode.py", "from pcap import pcap"),
        (foreign_imports, "procnet/bpf/events.py", "def f():\n    import bcc"),
        (foreign_imports, "procnet/bpf/events.py", "__import__('bcc')"),
        (foreign_imports, "procnet/sockets/diag.py", "import ctypes.util"),
        (foreign_imports, "procnet/sockets/process.py", "import psutil"),
        (too_long, "procnet/a.py", "x = 1\n" * 401),
        (too_long, "procnet/a.py", "def f():\n" + "    x = 1\n" * 60),
        (too_long, "procnet/a.py", "class C:\n  async def f():\n" + "    x = 1\n" * 60),
        (catches_everything, "procnet/a.py", "try: f()\nexcept: pass"),
        (catches_everything, "procnet/a.py", "try: f()\nexcept Exception: raise E"),
        (catches_everything, "procnet/a.py", "try: f()\nexcept (OSError, Exception): pass"),
        (catches_everything, "procnet/a.py", "try: f()\nexcept BaseException as e: log(e)"),
        (talks_to_a_person, "procnet/a.py", "def f():\n    print(1)"),
        (talks_to_a_person, "procnet/a.py", "sys.exit(1)"),
        (talks_to_a_person, "procnet/a.py", "raise SystemExit(1)"),
        (talks_to_a_person, "procnet/a.py", "from sys import exit"),
        (talks_to_a_person, "procnet/a.py", "signal.signal(2, f)"),
    ],
)
def test_the_rule_finds_what_breaks_it(rule: Rule, path: str, source: str) -> None:
    assert list(rule(parsed(path, source)))


@pytest.mark.parametrize(
    ("rule", "path", "source"),
    [
        (wrong_direction, "procnet/__init__.py", "from procnet.monitor import Monitor"),
        (wrong_direction, "procnet/monitor.py", "from procnet.capture.handle import Handle"),
        (wrong_direction, "procnet/capture/handle.py", "from .decode import _fast"),
        (wrong_direction, "procnet/report/report.py", "from procnet.ledger.ledger import Row"),
        (wrong_direction, "procnet/cli.py", "from procnet import Monitor, __version__"),
        (foreign_imports, "procnet/capture/handle.py", "import pcap"),
        (foreign_imports, "procnet/bpf/layout.py", "import ctypes"),
        (too_long, "procnet/a.py", "x = 1\n" * 400),
        (too_long, "procnet/a.py", "def f():\n" + "    x = 1\n" * 59),
        (catches_everything, "procnet/a.py", "try: f()\nexcept BaseException:\n  g()\n  raise"),
        (catches_everything, "procnet/a.py", "try: f()\nexcept OSError: pass"),
        (talks_to_a_person, "procnet/cli.py", "print(1)"),
        (talks_to_a_person, "procnet/a.py", "log.info('print')"),
    ],
)
def test_the_rule_lets_the_rest_be(rule: Rule, path: str, source: str) -> None:
    assert list(rule(parsed(path, source))) == []


def test_every_exception_is_still_needed() -> None:
    for place in LONG_BY_REASON:
        path, _, function = place.partition(":")
        module = parsed(path, (TOP / path).read_text())
        names = {
            node.name
            for node in ast.walk(module.tree)
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        }
        assert not function or function in names, f"{place} is no more"
        assert function or module.source.count("\n") > MAX_MODULE_LINES, f"{place} is short now"
    for path in [*CATCHES_EVERYTHING, *TALKS_TO_A_PERSON]:
        assert (TOP / path).exists(), f"{path} is no more"


def test_examples_are_short() -> None:
    for module in python_files("examples"):
        assert module.source.count("\n") <= MAX_EXAMPLE_LINES, module.path


# -- the front door ---------------------------------------------------------------------------

# Runs in a new interpreter. Importing reads .py and .pyc files and lists directories on sys.path;
# whatever else the interpreter's audit hooks see is an effect that an import must not have.
WATCH = """
import json, os, sys, threading
seen = []
roots = tuple(os.path.realpath(p or ".") + os.sep for p in [*sys.path, sys.prefix, sys.base_prefix])
quiet = ("compile", "exec", "import", "marshal.", "object.", "code.", "sys._", "builtins.id",
         "cpython.", "os.scandir", "os.listdir", "os.putenv", "pickle.find_class",
         "sys.unraisablehook", "os.fwalk", "sys.monitoring.")
def hook(event, args):
    if event == "open":
        path, mode = args[0], args[1]
        inside = isinstance(path, str) and os.path.realpath(path).startswith(roots)
        if not inside or (mode and set(mode) & set("wax+")):
            seen.append([event, str(path)])
    elif not event.startswith(quiet):
        seen.append([event, repr(args)])
fds = len(os.listdir("/proc/self/fd"))
sys.addaudithook(hook)
STATEMENT
found = seen[:]
print(json.dumps({"seen": found, "modules": sorted(sys.modules),
                  "threads": threading.active_count() - 1,
                  "fds": len(os.listdir("/proc/self/fd")) - fds}))
"""


def effects_of(statement: str) -> dict[str, list[object]]:
    code = WATCH.replace("STATEMENT", statement)
    done = subprocess.run(
        [sys.executable, "-B", "-c", code], cwd=TOP, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    answer: dict[str, list[object]] = json.loads(done.stdout)
    return answer


def test_importing_procnet_has_no_effect_but_the_import() -> None:
    effects = effects_of("import procnet")
    assert "procnet" in effects["modules"]
    assert effects["seen"] == []
    assert not effects["threads"] and not effects["fds"]
    assert set(effects["modules"]).isdisjoint(HEAVY)


@pytest.mark.parametrize(
    "statement",
    [
        "open('/proc/self/stat').close()",
        "import socket; socket.socket().close()",
        "import subprocess; subprocess.run(['true'])",
        "import os; os.fork() or os._exit(0)",
        "import ctypes; ctypes.CDLL(None)",
        "import threading, time; threading.Thread(target=time.sleep, args=(1,)).start()",
        "import os; kept = os.dup(0)",
    ],
)
def test_an_effect_would_be_seen(statement: str) -> None:
    effects = effects_of(statement)
    assert effects["seen"] or effects["threads"] or effects["fds"]


COLLECT = """
import sys, pytest
seen = []
def hook(event, args):
    path = str(args[0]) if args else ""
    if event == "ctypes.dlopen" and "bpf" in path or event == "open" and path.startswith("/sys"):
        seen.append(path)
sys.addaudithook(hook)
status = pytest.main(["-p", "no:cacheprovider", "--collect-only", "-qq", *sys.argv[1:]])
sys.exit(f"asked for {seen}" if seen else status)
"""


def collect(*paths: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-B", "-c", COLLECT, *paths]
    return subprocess.run(argv, cwd=TOP, capture_output=True, text=True, timeout=60)


def test_collecting_the_tests_asks_the_kernel_for_nothing(tmp_path: Path) -> None:
    done = collect("tests")
    assert done.returncode == 0, done.stderr
    (tmp_path / "test_asking.py").write_text(
        "from procnet.bpf import libbpf\nlibbpf.load_library()\ndef test(): pass\n"
    )
    assert "asked for ['libbpf" in collect(str(tmp_path)).stderr


def undocumented(name: str, thing: object) -> Iterator[str]:
    """The name, and the public methods of a class, that have no docstring of their own."""
    if not isinstance(thing, type) and not callable(thing):
        return
    # Dataclasses and named tuples get their signature for a docstring, an old Enum a phrase.
    made_up = (f"{getattr(thing, '__name__', name)}(", "An enumeration.", "Alias for field")
    doc = vars(thing).get("__doc__") if isinstance(thing, type) else thing.__doc__
    if not doc or not doc.strip() or doc.startswith(made_up):
        yield name
    for member, value in vars(thing).items() if isinstance(thing, type) else ():
        is_code = isinstance(value, property | classmethod | staticmethod) or (
            callable(value) and not isinstance(value, thing)  # a member of an Enum is its value
        )
        if is_code and not member.startswith("_") and not value.__doc__:
            yield f"{name}.{member}"


def test_every_public_name_is_documented() -> None:
    import procnet

    assert sorted(set(procnet.__all__)) == sorted(procnet.__all__)
    things = {name: getattr(procnet, name) for name in procnet.__all__}
    assert [found for each in things.items() for found in undocumented(*each)] == []


def test_a_missing_docstring_would_be_found() -> None:
    class Told:
        """It is."""

        def method(self) -> None: ...

    class Bare(NamedTuple):
        x: int

    assert list(undocumented("Told", Told)) == ["Told.method"]
    assert list(undocumented("Bare", Bare)) == ["Bare"]
    assert list(undocumented("f", lambda: 0)) == ["f"]


# -- what the files say -----------------------------------------------------------------------

# Put together here, so that this file does not say it.
UNSPEAKABLE = {
    "a package registry's host": re.compile(
        "|".join(
            re.escape(".".join(words))
            for words in (
                ("pypi", "org"),
                ("pythonhosted", "org"),
                ("deb", "debian", "org"),
                ("archive", "ubuntu", "com"),
                ("npmjs", "org"),
                ("npmjs", "com"),
            )
        )
    ),
    "a path of someone's machine": re.compile(
        r"(?<![\w.}>)-])/(?:" + "|".join(("wo" + "rk", "ro" + "ot", "ho" + r"me/\w+")) + r")/"
    ),
    "an unrelated project": re.compile(r"pip3? install [^\n]*\b" + "b" + r"cc\b"),
}


def unspeakable(text: str) -> Iterator[str]:
    for what, pattern in UNSPEAKABLE.items():
        for match in pattern.finditer(text):
            yield f"{what}: {match[0]}"


def project_files() -> list[Path]:
    """What git tracks or would, as a clone has it; every file of a tree that has no git."""
    command = ["git", "-c", f"safe.directory={TOP}", "ls-files", "-z"]
    command += ["--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, cwd=TOP, capture_output=True, check=True).stdout
        names = [name for name in listed.decode().split("\0") if name]
    except (OSError, subprocess.CalledProcessError):
        hidden = re.compile(r"(^|/)(\.(?!ci/|gitignore)|build/|dist/|__pycache__/)")
        names = [str(path.relative_to(TOP)) for path in TOP.rglob("*")]
        names = [name for name in names if not hidden.search(name)]
    return [TOP / name for name in names if (TOP / name).is_file()]


def test_no_file_says_what_is_nobodys_business() -> None:
    files = project_files()
    assert TOP / "setup.cfg" in files
    found = [
        f"{path.relative_to(TOP)}: {each}"
        for path in files
        for each in unspeakable(path.read_text(errors="replace"))
    ]
    assert found == []


@pytest.mark.parametrize(
    "text",
    [
        "https://" + "pypi" + ".org/simple", "cd /" + "work/main", "'/" + "root/x'",
        "/" + "home/jo/x", "pip install" + " bcc",
    ],
)  # fmt: skip
def test_it_would_be_found(text: str) -> None:
    assert list(unspeakable(text))


def test_the_rest_may_be_said() -> None:
    assert list(unspeakable("/proc/1/ro" + "ot/etc, apt-get install python3-bpfcc")) == []


def test_requirements_are_the_designed_ones() -> None:
    """BCC comes with the distribution; the project of its name in the registry is another."""
    config = configparser.ConfigParser()
    config.read(TOP / "setup.cfg")
    required = config["options"]["install_requires"].split("\n")
    names = {re.split(r"[^\w-]", line, maxsplit=1)[0] for line in required if line.strip()}
    assert names == {"pypcap", "pcap-ct", "dpkt", "cachetools"}
    extras = "\n".join(config["options.extras_require"].values())
    assert not re.search(r"^bcc\b", extras, re.MULTILINE)
