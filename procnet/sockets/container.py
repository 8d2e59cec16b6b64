"""The container that a cgroup path belongs to.

The forms are those that Docker, containerd, CRI-O, Podman and Garden give their cgroups, with the
cgroupfs and the systemd driver, on cgroup v1 and v2 (checked against the parsers of tracee and
tetragon and the runtimes' own documentation).
"""

from __future__ import annotations

import re

_ID = r"(?P<id>[0-9a-f]{64})"

# One pattern per way to name a container's cgroup; each matches a whole path component. Podman's
# and CRI-O's monitors (libpod-conmon-ID.scope, crio-conmon-ID.scope) run outside the container and
# match none of them, because nothing may stand between the runtime's name and the id.
_FORMS = tuple(
    re.compile(form)
    for form in (
        # /docker/ID, /actions_job/ID, /kubepods/QOS/podUID/ID
        _ID,
        # docker-ID.scope, cri-containerd-ID.scope, crio-ID, libpod-ID.scope
        rf"(?:docker|cri-containerd|crio|libpod)-{_ID}(?:\.scope)?",
        # a systemd name that reached the cgroupfs driver: kubepods-podUID.slice:cri-containerd:ID
        rf".*:(?:docker|cri-containerd|crio):{_ID}",
        # Garden (Cloud Foundry)
        r"(?P<id>[0-9a-f]{8}(?:-[0-9a-f]{4}){4})",
    )
)


def container_of(cgroup_path: str) -> str:
    """The container id in a cgroup path, in full; empty if there is none.

    For example ``/system.slice/docker-<64 hex>.scope`` gives the 64 digits. The innermost container
    wins: services inside one (``…/<id>/system.slice/nginx.service``) and cgroups made by its
    runtime (Podman's ``container``, sysbox's ``syscont-cgroup-root``) are looked through.
    """
    for component in reversed(cgroup_path.split("/")):
        for form in _FORMS:
            match = form.fullmatch(component)
            if match:
                return match["id"]
    return ""
