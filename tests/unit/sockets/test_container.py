from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from procnet.sockets.container import container_of

ID = "0123456789abcdef" * 4
INNER = "fedcba9876543210" * 4
POD = "pod0a1b2c3d-1111-2222-3333-444455556666"
SLICE = f"kubepods-burstable-{POD.replace('-', '_')}.slice"
GARDEN = "6f265890-5165-7fab-6b52-18d1"


@pytest.mark.parametrize(
    "path",
    [
        f"/docker/{ID}",
        f"/actions_job/{ID}",
        f"/system.slice/docker-{ID}.scope",
        f"/kubepods/besteffort/{POD}/{ID}",
        f"/kubepods/{POD}/{ID}",
        f"/kubepods.slice/kubepods-burstable.slice/{SLICE}/cri-containerd-{ID}.scope",
        f"/kubepods.slice/kubepods-burstable.slice/{SLICE}/crio-{ID}.scope",
        f"/kubepods.slice/kubepods-burstable.slice/{SLICE}/docker-{ID}.scope",
        f"/kubepods/burstable/{POD}/crio-{ID}",
        f"/system.slice/containerd.service/{SLICE}:cri-containerd:{ID}",
        f"/machine.slice/libpod-{ID}.scope",
        f"/machine.slice/libpod-{ID}.scope/container",
        f"/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{ID}.scope/container",
        f"/docker/{ID}/system.slice/nginx.service",
        f"/docker/{ID}/syscont-cgroup-root/init.scope",
        f"/docker/{ID}/",
        f"/../../docker/{ID}",
    ],
)
def test_every_runtime_and_driver_is_recognised(path: str) -> None:
    assert container_of(path) == ID


def test_a_garden_handle_is_a_container() -> None:
    assert container_of(f"/garden/{GARDEN}") == GARDEN


def test_the_innermost_container_wins() -> None:
    assert container_of(f"/docker/{ID}/docker/{INNER}") == INNER


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/",
        "/init.scope",
        "/system.slice/nginx.service",
        "/user.slice/user-1000.slice/session-2.scope",
        f"/machine.slice/libpod-conmon-{ID}.scope",
        f"/kubepods.slice/{SLICE}/crio-conmon-{ID}.scope",
        f"/kubepods.slice/{SLICE}",
        f"/kubepods/besteffort/{POD}",
        f"/docker/{ID[:31]}",
        f"/docker/{ID}0",
        f"/docker/{ID.upper()}",
        f"/machine.slice/machine-libpod_pod_{ID}.slice",
        f"/docker/{ID}\n",
    ],
)
def test_what_is_no_container_has_no_id(path: str) -> None:
    assert container_of(path) == ""


def test_a_monitor_inside_a_container_belongs_to_that_container() -> None:
    assert container_of(f"/docker/{ID}/machine.slice/libpod-conmon-{INNER}.scope") == ID


@given(st.text())
def test_any_path_has_an_answer(path: str) -> None:
    assert len(container_of(path)) in (0, 28, 64)
