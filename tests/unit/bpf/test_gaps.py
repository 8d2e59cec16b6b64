"""What the suite of owner events holds a family of hooks to, bpf/README.md admits."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.privileged.owners.gaps import GAPS, Gap

README = Path(__file__).resolve().parents[3] / "bpf" / "README.md"
CORE, KPROBES = "owners.bpf.c\n", "kprobes.bcc.c\n"


@pytest.mark.parametrize(
    ("hooks", "gap"),
    [
        pytest.param(hooks, gap, id=f"{hooks}: {case}")
        for hooks in GAPS
        for case, gap in GAPS[hooks].items()
    ],
)
def test_a_gap_is_named_in_the_readme(hooks: str, gap: Gap) -> None:
    sections = {
        section.partition("\n")[0] + "\n": " ".join(section.split())
        for section in README.read_text().split("\n## ")
    }
    assert gap.readme in sections[KPROBES if hooks == "kprobe" else CORE]
