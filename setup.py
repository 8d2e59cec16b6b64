"""Metadata is in setup.cfg; here is what it cannot say: the BPF programs go along.

They stand in ``bpf/``, beside the package, because they are no Python. An installed procnet needs
them too, so building copies their sources to ``procnet/bpf/src/`` (BCC compiles one of them on the
host), and compiles the CO-RE ones, for every kernel, to ``procnet/bpf/*.bpf.o``: that takes clang
and libbpf's headers. Without them procnet works all the same, with two sources less, and ``procnet
doctor`` says so. A checkout reads the sources where they are and has the objects in its own
``procnet/bpf/``.
"""

import shutil
import subprocess
import sysconfig
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

BPF_SOURCES = Path("bpf")
BPF_PATTERNS = ("*.c", "*.h", "README*", "LICENSE*", "COPYING*")
PACKAGED_SOURCES = Path("procnet", "bpf", "src")
# Object → source.
CORE_OBJECTS = {
    Path("procnet", "bpf", f"{name}.bpf.o"): BPF_SOURCES / f"{name}.bpf.c"
    for name in ("owners", "count")
}

# No path of this machine goes into the object; its BTF has the names of the files alone.
CLANG = ("clang", "-target", "bpf", "-O2", "-g", "-Wall", "-Werror", "-fdebug-compilation-dir=.")


class BuildWithBpf(build_py):
    """``build_py`` that also puts the BPF programs into the package."""

    def run(self):
        super().run()
        # A checkout (pip install -e): procnet/bpf/source.py finds the sources in bpf/ itself.
        for compiled, source in CORE_OBJECTS.items():
            into = compiled if self.editable_mode else Path(self.build_lib) / compiled
            self._compile(source, into)
        if self.editable_mode:
            return
        for source, target in self._bpf_files():
            self.mkpath(str(target.parent))
            self.copy_file(str(source), str(target))

    def get_outputs(self, include_bytecode=1):
        outputs = super().get_outputs(include_bytecode)
        if self.editable_mode:
            return outputs
        built = [Path(self.build_lib) / compiled for compiled in CORE_OBJECTS]
        outputs += [str(compiled) for compiled in built if compiled.exists()]
        return outputs + [str(target) for _, target in self._bpf_files()]

    def _bpf_files(self):
        into = Path(self.build_lib) / PACKAGED_SOURCES
        sources = sorted(path for pattern in BPF_PATTERNS for path in BPF_SOURCES.glob(pattern))
        return [(source, into / source.name) for source in sources]

    def _compile(self, source, target):
        # What an earlier build left may be of other sources.
        target.unlink(missing_ok=True)
        self.mkpath(str(target.parent))
        command = [*CLANG, "-c", str(source), "-o", str(target)]
        # Debian and Ubuntu have <asm/types.h> in a directory for the architecture.
        multiarch = sysconfig.get_config_var("MULTIARCH")
        command += [f"-I/usr/include/{multiarch}"] if multiarch else []
        try:
            done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
            why = done.stderr.strip() if done.returncode else ""
        except FileNotFoundError as error:
            why = str(error)
        if why:
            target.unlink(missing_ok=True)
            self.warn(f"procnet is built without {target.name} (needs clang and libbpf-dev): {why}")
            return
        strip = shutil.which("llvm-strip")
        if strip:  # DWARF is three quarters of it, and nobody reads that; BTF stays
            subprocess.run([strip, "-g", str(target)], check=True)


setup(cmdclass={"build_py": BuildWithBpf})
