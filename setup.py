"""Metadata is in setup.cfg; here is the one step that it cannot say: the BPF sources go along.

They stand in ``bpf/``, beside the package, because they are no Python. An installed procnet needs
them too, so building copies them to ``procnet/bpf/src/``. A checkout reads them where they are.
"""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

BPF_SOURCES = Path("bpf")
BPF_PATTERNS = ("*.c", "*.h", "README*", "LICENSE*", "COPYING*")
PACKAGED_SOURCES = Path("procnet", "bpf", "src")


class BuildWithBpf(build_py):
    """``build_py`` that also puts the BPF sources into the package."""

    def run(self):
        super().run()
        if self.editable_mode:  # a checkout: procnet/bpf/source.py finds bpf/ itself
            return
        for source, target in self._bpf_files():
            self.mkpath(str(target.parent))
            self.copy_file(str(source), str(target))

    def get_outputs(self, include_bytecode=1):
        outputs = super().get_outputs(include_bytecode)
        if self.editable_mode:
            return outputs
        return outputs + [str(target) for _, target in self._bpf_files()]

    def _bpf_files(self):
        into = Path(self.build_lib) / PACKAGED_SOURCES
        sources = sorted(path for pattern in BPF_PATTERNS for path in BPF_SOURCES.glob(pattern))
        return [(source, into / source.name) for source in sources]


setup(cmdclass={"build_py": BuildWithBpf})
