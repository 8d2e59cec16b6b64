"""Owner events by kprobes, compiled by BCC: for kernels without BTF, or when asked for."""

from __future__ import annotations

import contextlib
import os

from procnet import features
from procnet.bpf.child import Answer, ask, obstacle_in
from procnet.bpf.host import Host, find_obstacle, promised
from procnet.bpf.source import source_directory
from procnet.bpf.telling import Sources, Telling
from procnet.model import Feature

_NAME = "kprobe owners"


def probe(host: Host | None = None) -> Feature:
    """Whether this host can have kprobe owners: by looking, then by attaching a line with bcc."""
    host = host or Host()
    obstacle = find_obstacle(host) or obstacle_in(ask(host), host)
    if obstacle:
        return obstacle.as_feature(_NAME)
    return features.yes(_NAME, "kprobes, the headers of this kernel and bcc are here")


def promise(host: Host | None = None) -> Feature:
    """The same by looking alone, without a compiler: no, or worth a try."""
    return promised(_NAME, find_obstacle(host or Host()))


class KprobeOwners(Telling):
    """Who uses which socket, told by kprobes. Any thread may read or close it.

    The last descriptor of a kprobe event takes the probe and its program with it. (A child that was
    forked and has executed nothing since has one too, until it ends.)
    """

    def __init__(
        self, answer: Answer, sources: Sources, held: contextlib.ExitStack, netns: int | None
    ) -> None:
        """Use open()."""
        self.hooks: tuple[str, ...] = tuple(answer.message["hooks"])
        self._why_missing: dict[str, str] = answer.message["missing"]
        super().__init__(sources, held, netns)

    @classmethod
    def open(cls, host: Host | None = None, *, netns: int | None = None) -> KprobeOwners:
        """Compile and attach; 2 s or more, in a child process that is gone afterwards.

        ``netns``: the inode of the only network namespace to tell of. What happens elsewhere is in
        the ring all the same, and left out before it is decoded. Raises UnsupportedError,
        AccessError or LoadError: what is missing and what to do.
        """
        host = host or Host()
        obstacle = find_obstacle(host)
        if obstacle:
            raise obstacle.as_error("kprobes")
        answer = ask(host, source_directory())
        with contextlib.ExitStack() as held:
            held.callback(_close_all, answer.descriptors)
            obstacle = obstacle_in(answer, host)
            if obstacle:
                raise obstacle.as_error("kprobes")
            # The child passes the rings, the counters of what they lost, then the probes.
            events, processes, lost = answer.descriptors[:3]
            sources = Sources.open(events, processes, lost, host.proc_root, held)
            return cls(answer, sources, held.pop_all(), netns)

    @property
    def missing_hooks(self) -> tuple[str, ...]:
        """Hooks that this kernel does not have; feature() says why."""
        return tuple(self._why_missing)

    def feature(self) -> Feature:
        """What it is, with what is missing of it."""
        reason = f"{len(self.hooks)} hooks attached"
        if self._why_missing:
            missing = ", ".join(f"{hook} ({why})" for hook, why in self._why_missing.items())
            reason += f"; without {missing}"
        return features.yes(_NAME, reason)


def _close_all(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
