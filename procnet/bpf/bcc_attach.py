"""Compiles and attaches the kprobes, in a process of its own, and hands the descriptors over.

Run as a script by child.py, by any interpreter that has the distribution's bcc, so it needs nothing
of procnet's. It ends when its work is done: what the compiler writes to stderr, its 120 MB, bcc's
exit handlers and the raised RLIMIT_MEMLOCK end with it, and the program that embeds procnet has
none of them. The kernel keeps the probes for as long as somebody holds their descriptors.

    bcc_attach.py FD        only checks that bcc is there and may attach something
    bcc_attach.py FD DIR    DIR has kprobes.bcc.c

FD is a socket for the answer, one JSON object: {"hooks": [...], "missing": {hook: why}} with the
descriptors of the two rings, of the counters of what they lost, and of the probes;
{"refusal": why}; or {"no_bcc": why}, if this interpreter does not have it.
"""

from __future__ import annotations

import array
import atexit
import json
import os
import re
import socket
import sys
import tempfile
from types import TracebackType
from typing import Any

HOOKS = (
    # hook, program, at the return; a hook named twice: the second is for a kernel without the first
    ("tcp_connect", "tcp_connect", "on_tcp_connect", False),
    ("accept", "security_sock_graft", "on_sock_graft", False),
    ("accept", "inet_csk_accept", "on_csk_accept_return", True),
    ("tcp_sendmsg", "tcp_sendmsg", "on_tcp_sendmsg", False),
    ("tcp_sendpage", "tcp_sendpage", "on_tcp_sendpage", False),
    ("tcp_rcv_space_adjust", "tcp_rcv_space_adjust", "on_tcp_receive", False),
    ("udp_sendmsg", "udp_sendmsg", "on_udp_sendmsg", False),
    ("udpv6_sendmsg", "udpv6_sendmsg", "on_udpv6_sendmsg", False),
    ("skb_consume_udp", "skb_consume_udp", "on_skb_consume_udp", False),
    ("raw_sendmsg", "raw_sendmsg", "on_raw_sendmsg", False),
    ("rawv6_sendmsg", "rawv6_sendmsg", "on_rawv6_sendmsg", False),
    ("ping_v4_sendmsg", "ping_v4_sendmsg", "on_ping_v4_sendmsg", False),
    ("ping_v6_sendmsg", "ping_v6_sendmsg", "on_ping_v6_sendmsg", False),
    ("skb_free_datagram", "skb_free_datagram", "on_skb_free_datagram", False),
    ("inet_release", "inet_release", "on_inet_release", False),
    ("finalize_exec", "finalize_exec", "on_finalize_exec", False),
)
# Whoever does not have it has no use for it (6.5, dc97391e6610).
UNTIL_THEN = ("tcp_sendpage",)


class Attempt:
    """Keeps what bcc raised. It raises bare Exception for whatever it means (0.26 and 0.35), so
    that exact type is taken and every other error of ours still goes through."""

    def __init__(self) -> None:
        self.refusal = ""

    def __enter__(self) -> Attempt:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> bool:
        if kind is Exception:
            self.refusal = str(error)
        return kind is Exception


def attach_hooks(program: Any) -> tuple[list[str], dict[str, str]]:
    """The hooks that hold, and for each of the others why it does not."""
    attached: list[str] = []
    missing: dict[str, str] = {}
    for hook, function, name, at_return in HOOKS:
        if hook in attached:
            continue
        attach = program.attach_kretprobe if at_return else program.attach_kprobe
        with Attempt() as attempt:
            attach(event=function, fn_name=name)
        if attempt.refusal:
            if hook not in UNTIL_THEN:
                missing[hook] = attempt.refusal
        else:
            attached.append(hook)
            missing.pop(hook, None)
    return attached, missing


def build(**how: Any) -> tuple[Any, str]:
    """The compiled program, or why not."""
    from bcc import BPF

    program = None
    with Attempt() as attempt:
        program = BPF(**how)
        # It would switch the events off (PERF_EVENT_IOC_DISABLE in bpf_close_perf_event_fd), which
        # are somebody else's by then.
        atexit.unregister(program.cleanup)
    return program, attempt.refusal


def build_hooks(directory: str) -> tuple[Any, str]:
    """The compiled program with the hooks, or why not."""
    with open(os.path.join(directory, "kprobes.bcc.c")) as file:
        text = file.read()
    flags = ["-w", "-I" + directory]
    with tempfile.TemporaryFile() as said:
        stderr = os.dup(2)
        os.dup2(said.fileno(), 2)
        try:
            program, refusal = build(text=text, cflags=flags)
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
        said.seek(0)
        noise = said.read().decode(errors="backslashreplace")
    # BCC has a uapi/linux/bpf.h of its own, and inline functions in the linux/bpf.h of a newer
    # kernel want the size of structures that came later (BCC 0.26 and Linux 6.12, both of Debian
    # 12: bpf_rb_root, bpf_wq and two more). We use none of them: they may have any.
    unknown = sorted(set(re.findall(r"incomplete type 'struct (bpf_\w+)'", noise)))
    if refusal and unknown:
        declared = "".join(f"struct {name} {{ long any; }}; " for name in unknown)
        return build(text=declared + text, cflags=flags)
    sys.stderr.write(noise)
    return program, refusal


def attach(directory: str) -> tuple[dict[str, Any], list[int]]:
    """Compile, load, attach: the answer and its descriptors."""
    program, refusal = build_hooks(directory)
    if refusal:
        return {"refusal": refusal}, []
    attached, missing = attach_hooks(program)
    descriptors = [program[name].map_fd for name in ("events", "processes", "lost")]
    descriptors += [fd for hook in program.kprobe_fds.values() for fd in hook.values()]
    return {"hooks": attached, "missing": missing}, descriptors


def check() -> dict[str, Any]:
    """The answer after attaching a program that does nothing."""
    program, refusal = build(text="int procnet_check(void *ctx) { return 0; }")
    if refusal:
        return {"refusal": refusal}
    with Attempt() as attempt:
        program.attach_kprobe(event="tcp_connect", fn_name="procnet_check")
    missing = {"tcp_connect": attempt.refusal} if attempt.refusal else {}
    return {"hooks": [], "missing": missing}


def answer(directory: str) -> tuple[dict[str, Any], list[int]]:
    """What to say to whoever runs this."""
    try:
        import bcc  # noqa: F401
    except ImportError as error:
        return {"no_bcc": str(error)}, []
    return attach(directory) if directory else (check(), [])


def main(descriptor: str, directory: str = "") -> None:
    """The script."""
    message, descriptors = answer(directory)
    with socket.socket(fileno=int(descriptor)) as connection:
        passed = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))
        connection.sendmsg([json.dumps(message).encode()], [passed] if descriptors else [])


if __name__ == "__main__":
    main(*sys.argv[1:])
