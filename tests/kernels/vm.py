"""Runs a command on another kernel: in a virtual machine that sees this machine's files.

virtme-ng boots a kernel image of /boot under QEMU, with the host's root file system (what the guest
writes is gone afterwards) and one shared directory. Without hardware virtualisation (TCG) a boot
takes 20 to 30 s and all else is 10 to 20 times slower than on the host.

virtme-ng's own mount of the host asks the host again whenever a file is read, and an interpreter
reads hundreds: what a start of Python needs is mounted a second time, with a cache.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

TOP = Path(__file__).resolve().parents[2]

_CACHED = (
    "-fsdev local,id=cached,path=/,security_model=none,readonly=on,multidevs=remap"
    " -device virtio-9p-pci,fsdev=cached,mount_tag=cached"
)
_SCRIPT = """\
ip link set lo up
mkdir /run/host &&
mount -t 9p -o ro,trans=virtio,version=9p2000.L,msize=512000,cache=loose cached /run/host &&
mount --bind /run/host/usr /usr &&
mount --bind /run/host{directory} {directory} || exit
export PYTHONDONTWRITEBYTECODE=1 PROCNET_VM=1 PROCNET_PRIVILEGED=1
cd {directory}
( {command}
) >{share}/output 2>&1 </dev/null
echo $? >{share}/status.new
mv {share}/status.new {share}/status
sync
"""


class VmResult(NamedTuple):
    """``exit_status`` is None if the command did not end in time or the machine did not boot;
    ``output`` is what it wrote to both stdout and stderr, ``console`` what the machine said."""

    exit_status: int | None
    output: str
    console: str


def vng() -> str:
    """The command. It is beside the interpreter if that is one of a virtual environment."""
    found = shutil.which("vng", path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}")
    if found is None:
        raise FileNotFoundError("vng is not installed: pip install virtme-ng")
    return found


def run_in_vm(
    kernel: Path, command: str, *, timeout_s: float, share: Path | None = None,
    memory: str = "2G", cpus: int = 1,
) -> VmResult:  # fmt: skip
    """Boot ``kernel`` and run a shell command there as root, in the top directory of the checkout.

    ``share`` is a directory that the guest may write to, under the same path. lo is up. The machine
    is killed when the time is over.
    """
    if share is None:
        with tempfile.TemporaryDirectory(prefix="procnet-vm-") as made:
            return run_in_vm(
                kernel, command, timeout_s=timeout_s, share=Path(made), memory=memory, cpus=cpus
            )
    quoted = shlex.quote(str(share))
    script = share / "run.sh"
    script.write_text(
        _SCRIPT.format(directory=shlex.quote(str(TOP)), command=command, share=quoted)
    )
    (share / "status").unlink(missing_ok=True)
    tool = vng()
    arguments = [
        tool, "--disable-kvm", "-r", str(kernel), "--cpus", str(cpus), "--memory", memory,
        "--rwdir", str(share), "--cwd", str(share), f"--qemu-opts={_CACHED}", "--",
        f"sh {shlex.quote(str(script))}",
    ]  # fmt: skip
    console = _run(arguments, tool, share / "console", timeout_s)
    status = share / "status"
    output = share / "output"
    return VmResult(
        int(status.read_text()) if status.exists() else None,
        output.read_text(errors="backslashreplace") if output.exists() else "",
        console,
    )


def _run(arguments: list[str], tool: str, console: Path, timeout_s: float) -> str:
    # vng runs virtme-run and qemu, which it finds by PATH; a session of its own makes all of them
    # one group to kill.
    environment = {**os.environ, "PATH": f"{Path(tool).parent}:{os.environ.get('PATH', '')}"}
    with console.open("wb") as log:
        machine = subprocess.Popen(
            arguments, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
            env=environment, start_new_session=True,
        )  # fmt: skip
        try:
            machine.wait(timeout_s)
        except subprocess.TimeoutExpired:
            log.write(f"\nkilled after {timeout_s:.0f} s\n".encode())
        finally:
            if machine.poll() is None:
                os.killpg(machine.pid, signal.SIGKILL)
                machine.wait()
    return console.read_text(errors="backslashreplace")
