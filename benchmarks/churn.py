"""Does memory stay where it is while a million flows come and go?

    python3 benchmarks/churn.py [--seconds 600] [--rate 1667] [--counting kernel]

As root, on loopback in a network namespace of its own. tests/workloads/flood.c opens so many new
flows a second, half of them TCP connections to a server process and half datagrams, and says what
it sent; ``procnet report`` runs beside it. Printed: its RSS and its processor time ten times, the
ratio of the last RSS to the first, and whether the report has every byte, by process.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.privileged import flooding
from tests.privileged.namespace import Namespace
from tests.privileged.reporting import Reporter, process_payload


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--rate", type=int, default=1667)
    parser.add_argument("--counting", default="kernel")
    options = parser.parse_args()
    with Namespace("churn") as namespace, tempfile.TemporaryDirectory() as directory:
        where = [] if options.counting == "socket" else ["--interface", "lo"]
        program = flooding.build(Path(directory))
        namespace.run(["nft", "-f", "-"], stdin=flooding.DEAF_TO_DATAGRAMS)
        arguments = ["churn", str(options.seconds), str(options.rate)]
        with flooding.Flood(namespace, program, *arguments) as flood:
            reporter = Reporter(namespace, "--counting", options.counting, *where)
            started_cpu_s = flooding.cpu_s(reporter.pid)
            flood.begin()
            started_s = time.monotonic()
            first_bytes = last_bytes = 0
            for tenth in range(1, 11):
                due_s = started_s + options.seconds * tenth / 10
                time.sleep(max(0.0, due_s - time.monotonic()))
                last_bytes = flooding.rss_bytes(reporter.pid)
                first_bytes = first_bytes or last_bytes
                took_s = time.monotonic() - started_s
                cpu = (flooding.cpu_s(reporter.pid) - started_cpu_s) / took_s
                print(f"{took_s:6.0f} s  RSS {last_bytes >> 20} MiB  CPU {cpu:.1%}", flush=True)
            flows, packets, wire_bytes, sent, received, server = flood.end()
            report = reporter.finish()
    print(f"{flows} flows, RSS {last_bytes / first_bytes:.3f} of that after a tenth of the time")
    payload_bytes = (wire_bytes - packets * 28) + sent
    reported_bytes, _ = process_payload(report, flood.pid)
    print(f"client: sent {payload_bytes} payload bytes, {reported_bytes} reported")
    print(f"server: took {received} payload bytes, {process_payload(report, server)[1]} reported")
    print(f"unattributed: {report['unattributed']['reasons']}")
    print(f"loss: { ({k: v for k, v in report['loss'].items() if v}) }")


if __name__ == "__main__":
    main()
