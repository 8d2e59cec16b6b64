"""Reads pytest's results: count.py DIRECTORY KIND…, for DIRECTORY/KIND.xml.

Every kind must have run, and nothing may have been skipped but what is argued for here. The last
line is the sum, ``N passed, N failed``; the exit status is 1 if anything is wrong.
"""

import sys
import xml.etree.ElementTree as ET
from pathlib import Path

MAY_BE_SKIPPED: dict[str, str] = {
    # "test name": "why it cannot run here"
}


def main(directory: str, kinds: list[str]) -> int:
    wrong = []
    passed = failed = 0
    for kind in kinds:
        path = Path(directory, f"{kind}.xml")
        if not path.exists():
            wrong.append(f"{kind}: did not run (no {path})")
            continue
        outcomes = [outcome(case) for case in ET.parse(path).iter("testcase")]
        ran = [each for each in outcomes if each[1] != "skipped"]
        passed += sum(each[1] == "passed" for each in ran)
        failed += sum(each[1] == "failed" for each in ran)
        print(f"{kind}: {len(ran)} ran, {len(outcomes) - len(ran)} skipped")
        if not ran:
            wrong.append(f"{kind}: no test ran")
        for name, how, why in outcomes:
            if how == "skipped" and name not in MAY_BE_SKIPPED:
                wrong.append(f"{kind}: {name} was skipped: {why}")
    for each in wrong:
        print(f"WRONG: {each}")
    print(f"{passed} passed, {failed} failed")
    return 1 if wrong or failed else 0


def outcome(case: ET.Element) -> tuple[str, str, str]:
    """(name, passed | failed | skipped, why)."""
    name = case.get("name", "")
    if (skipped := case.find("skipped")) is not None:
        return name, "skipped", skipped.get("message", "")
    if case.find("failure") is not None or case.find("error") is not None:
        return name, "failed", ""
    return name, "passed", ""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
