"""The hooks of the CO-RE rung: which question each answers, and which of them a kernel offers."""

from __future__ import annotations

from typing import NamedTuple


class Hook(NamedTuple):
    """A program of bpf/owners.bpf.c. ``needs`` is a name in the kernel's BTF, empty for none."""

    name: str
    program: str
    needs: str = ""
    cgroup: bool = False
    traces_function: bool = False
    on_demand: bool = False
    """Attached when there is something for it to do: it costs every packet of the host."""


def _cgroup(name: str) -> Hook:
    return Hook(f"cgroup {name}", f"on_{name}", cgroup=True)


def _tracepoint(name: str, program: str) -> Hook:
    return Hook(name, program, f"btf_trace_{name}")


def _function(name: str, program: str) -> Hook:
    return Hook(name, program, name, traces_function=True)


_CREATE = Hook("cgroup sock_create", "on_create", cgroup=True)
_CONNECT = Hook("sockops", "on_tcp_connect", cgroup=True)
_EGRESS = Hook("cgroup_skb egress", "on_egress", cgroup=True)
_INGRESS = Hook("cgroup_skb ingress", "on_ingress", cgroup=True, on_demand=True)
_RELEASE = Hook("cgroup sock_release", "on_release", cgroup=True)
_BUT_UDP, _AND_TCP = "_but_udp", "_and_tcp"
INDISPENSABLE = ("socket", "connect", "send", "TCP send", "TCP receive", "close")
"""Without one of these a flow would be named after its last user but one, and nobody would know."""

# For each question the ways to answer it, the best first: one is used, with all of its hooks.
QUESTIONS: dict[str, tuple[tuple[Hook, ...], ...]] = {
    "socket": ((_CREATE,),),
    "birth": ((_cgroup("bind4"), _cgroup("bind6")),),
    "connect": ((_CONNECT,),),
    "send": ((_EGRESS,),),
    "TCP send": (
        (_tracepoint("tcp_sendmsg_locked", "on_tcp_sendmsg_locked"),),
        (_function("tcp_sendmsg", "on_tcp_sendmsg"), _function("tcp_sendpage", "on_tcp_sendpage")),
        (_function("tcp_sendmsg", "on_tcp_sendmsg"),),
        (_tracepoint("sock_send_length", "on_tcp_send_length"),),
    ),
    "TCP receive": ((_tracepoint("tcp_rcv_space_adjust", "on_tcp_receive"),),),
    "UDP receive": (
        (_function("skb_consume_udp", "on_skb_consume_udp"),),
        (_cgroup("recvmsg4"), _cgroup("recvmsg6"), _INGRESS),
    ),
    "receive": ((_tracepoint("sock_recv_length", "on_receive_length"),),),
    "accept": (
        (_function("security_sock_graft", "on_sock_graft"),),
        (_cgroup("getpeername4"), _cgroup("getpeername6")),
    ),
    "close": ((_RELEASE,),),
    "injection": ((_tracepoint("net_dev_queue", "on_queue"),),),
    "program": ((_tracepoint("sched_process_exec", "on_exec"),),),
}
# The same, for who counts at the sockets too.
COUNTING: dict[str, tuple[tuple[Hook, ...], ...]] = {
    "received bytes": (
        (Hook("cgroup_skb ingress, counting", "on_receive_counting", cgroup=True),),
    ),
    "end of a connection": (
        (
            Hook("sockops, counting", "on_tcp_state", cgroup=True),
            _tracepoint("tcp_destroy_sock", "on_tcp_destroy"),
        ),
    ),
}
# A connection that nobody has used is taken for one that is just being accepted: not before those
# that are older than we are have been seen.
_AFTER_THE_SNAPSHOT = ("accept", "close")


class Choice(NamedTuple):
    """The hooks to load, in the order to attach them, and why there are no others."""

    first: tuple[Hook, ...]
    later: tuple[Hook, ...]
    missing: dict[str, str]

    @property
    def hooks(self) -> tuple[Hook, ...]:
        return self.first + self.later

    def without(self, hooks: list[Hook], question: str, why: str) -> Choice:
        """The same where these, which were to answer that question, could not be attached."""
        first, later = (
            tuple(hook for hook in those if hook not in hooks) for those in (self.first, self.later)
        )
        return Choice(first, later, {**self.missing, question: why})


def choose(
    names: bytes, traces_functions: bool, refused: dict[str, str], *, counting: bool = False
) -> Choice:
    """For each question the best answer that the kernel has names for and has not refused.

    ``names`` is its BTF; ``refused`` says of programs why not; ``counting`` adds questions.
    """
    first: list[Hook] = []
    later: list[Hook] = []
    missing: dict[str, str] = {}
    for question, answers in (QUESTIONS | COUNTING if counting else QUESTIONS).items():
        why: dict[str, str] = {}
        for hooks in answers:
            here = {hook.name: _absence(hook, names, traces_functions, refused) for hook in hooks}
            if not any(here.values()):
                (later if question in _AFTER_THE_SNAPSHOT else first).extend(hooks)
                break
            why.update({name: reason for name, reason in here.items() if reason})
        else:
            missing[question] = ", ".join(f"{name}: {reason}" for name, reason in why.items())
    programs = frozenset(hook.program for hook in first)
    first = [hook._replace(program=_variant(hook.program, programs)) for hook in first]
    return Choice(tuple(first), tuple(later), missing)


def _variant(program: str, programs: frozenset[str]) -> str:
    """The program to load for one that is to share its work with the others that were chosen."""
    if program == "on_receive_length" and "on_skb_consume_udp" in programs:
        return program + _BUT_UDP  # datagrams are told by the other one, with their peer
    if program == "on_egress" and "on_tcp_send_length" in programs:
        return program + _AND_TCP  # the other one is late
    return program


def _absence(hook: Hook, names: bytes, traces_functions: bool, refused: dict[str, str]) -> str:
    if hook.program in refused:
        return refused[hook.program]
    if hook.traces_function and not traces_functions:
        return "the kernel loads no fentry programs"
    if hook.needs and b"\0" + hook.needs.encode() + b"\0" not in names:
        return "the kernel does not have it"
    return ""


def unvaried(program: str) -> str:
    """The name under which choose() knows a program."""
    return program.removesuffix(_BUT_UDP).removesuffix(_AND_TCP)
