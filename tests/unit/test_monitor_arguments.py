"""What a Monitor refuses before it touches anything."""

import pytest

import procnet


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"interfaces": "lo"}, "list of names"),
        ({"interval_s": 0}, "interval_s"),
        ({"interval_s": float("nan")}, "interval_s"),
        ({"interval_s": float("inf")}, "interval_s"),
        ({"max_flows": 0}, "max_flows"),
        ({"kernel": "nosuch"}, "kernel must be one of auto, core, kprobe, off"),
        ({"counting": "nosuch"}, "counting must be one of"),
        ({"counting": "socket", "compare_sockets": True}, "counting must not be socket"),
    ],
)
def test_a_value_that_cannot_be_right_is_refused_at_once(arguments: dict, said: str) -> None:
    with pytest.raises(procnet.UsageError, match=said):
        procnet.Monitor(**arguments)


def test_making_one_asks_for_nothing() -> None:
    assert procnet.Monitor(["nosuch0"]).interfaces == ()
