"""Who is using the network? Ten seconds of it, one line per process and second.

$ sudo .venv/bin/python examples/who.py
1.0 s  'iperf3' (pid 4021)  sent 3108213044 B  received 1204 B
1.0 s  unknown: NOT_IP  sent 0 B  received 84 B
"""

import sys

import procnet

seconds = int(sys.argv[1]) if len(sys.argv) > 1 else 10

with procnet.Monitor(interval_s=1.0) as monitor:
    for _, report in zip(range(seconds), monitor, strict=False):
        for row in report.processes:
            print(
                f"{report.duration_s:.1f} s  {row.process.name!a} (pid {row.process.pid})"
                f"  sent {row.sent.wire_bytes} B  received {row.received.wire_bytes} B"
            )
        for reason, both in report.reasons.items():
            print(
                f"{report.duration_s:.1f} s  unknown: {reason.value}"
                f"  sent {both.sent.wire_bytes} B  received {both.received.wire_bytes} B"
            )
