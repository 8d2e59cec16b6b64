"""Runs bcc_attach.py in a process of its own, and takes its answer."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any, NamedTuple

from procnet.bpf.host import Host, Obstacle, perf_obstacle
from procnet.errors import LoadError

_SCRIPT = Path(__file__).with_name("bcc_attach.py")
# A compile takes 2 s, and 80 s in an emulated machine.
_TIMEOUT_S = 600.0
_NOISE_LINES = 15
# Without these two the rung is not worth its name; each of the others only makes it better.
_REQUIRED = ("tcp_connect", "udp_sendmsg")
_ANSWER_BYTES = 1 << 16
_MOST_DESCRIPTORS = 64


class Answer(NamedTuple):
    """What the script said (its docstring has the forms), with descriptors that are ours now, and
    what it and the compiler wrote. An empty message: it died."""

    message: dict[str, Any]
    descriptors: list[int]
    noise: str


def ask(host: Host, directory: Path | None = None) -> Answer:
    """Run it in the first interpreter that has bcc; without a directory it only checks."""
    answer = Answer({"no_bcc": "no Python interpreter found"}, [], "")
    for interpreter in host.interpreters:
        try:
            answer = _ask_one(host, interpreter, directory)
        except OSError as error:
            answer = Answer({"no_bcc": str(error)}, [], "")
        if "no_bcc" not in answer.message:
            break
    return answer


def obstacle_in(answer: Answer, host: Host) -> Obstacle | None:
    """Why there is no program with the hooks that it must have, if there is none."""
    message = answer.message
    if "no_bcc" in message:
        return Obstacle(
            f"the Python modules of BCC are not installed ({message['no_bcc']})",
            "install the distribution's python3-bpfcc (Debian/Ubuntu) or python3-bcc (Fedora)",
        )
    noise = f"it wrote:\n{answer.noise or '(nothing)'}"
    if "hooks" not in message:
        refusal = message.get("refusal", "the compiler's process died")
        return Obstacle(f"bcc could not compile or load the program: {refusal}", noise, LoadError)
    refusals = [message["missing"][hook] for hook in _REQUIRED if hook in message["missing"]]
    if refusals:
        reason = f"the kernel refused a hook: {'; '.join(refusals)}"
        return perf_obstacle(host) or Obstacle(reason, noise, LoadError)
    return None


def _ask_one(host: Host, interpreter: str, directory: Path | None) -> Answer:
    import subprocess  # 3 ms, for those who have kprobes

    environment = dict(host.environment)
    # It would make bcc take other headers than those that were looked at.
    environment.pop("BCC_KERNEL_MODULES_SUFFIX", None)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        # -I: nothing from the caller's PYTHONPATH or working directory is run, perhaps as root.
        command = [interpreter, "-I", str(_SCRIPT), str(theirs.fileno())]
        command += [str(directory)] if directory else []
        # A session of its own, so that an interrupt at the terminal is for the caller alone.
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            pass_fds=[theirs.fileno()], env=environment, start_new_session=True,
        )  # fmt: skip
        theirs.close()
        with child:
            try:
                noise = _last_lines(child.communicate(timeout=_TIMEOUT_S)[0])
            except subprocess.TimeoutExpired:
                child.kill()
                noise = f"{interpreter} did not end within {_TIMEOUT_S:.0f} s"
            except BaseException:
                child.kill()
                raise
        # SOCK_SEQPACKET: the whole answer, or an end of file if there is none. Not the exit status,
        # which an embedding program that reaps all children may have taken.
        message, descriptors, flags, _ = socket.recv_fds(
            ours, _ANSWER_BYTES, _MOST_DESCRIPTORS, socket.MSG_CMSG_CLOEXEC
        )
    if flags & socket.MSG_CTRUNC:
        for descriptor in descriptors:
            os.close(descriptor)
        return Answer({"refusal": "this process has too few descriptors left (ulimit -n)"}, [], "")
    return Answer(json.loads(message) if message else {}, descriptors, noise)


def _last_lines(text: bytes) -> str:
    return "\n".join(text.decode("utf-8", "backslashreplace").splitlines()[-_NOISE_LINES:]).strip()
