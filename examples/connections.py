"""Prints each new outbound TCP connection with the process that made it.

A connection is outbound if nobody here listens on its local port.

    $ sudo .venv/bin/python examples/connections.py
    curl (pid 4711)  10.0.0.5:49152 -> 10.0.0.9:443  KERNEL_EVENT
"""

import sys
import time

import procnet

seconds = float(sys.argv[1]) if len(sys.argv) > 1 else float("inf")
end_s = time.monotonic() + seconds
seen = set()


def listening_ports() -> set[int]:
    rows, _ = procnet.sockets()
    return {row.local_port for row in rows if row.state == "listen"}


with procnet.Monitor(interval_s=0.5) as monitor:
    print(f"watching {', '.join(monitor.interfaces)}", flush=True)
    for report in monitor:
        listening = listening_ports()
        for flow in report.flows:
            key = (flow.local, flow.remote, flow.process and flow.process.id)
            if flow.protocol != "tcp" or flow.local.port in listening or key in seen:
                continue
            seen.add(key)
            who, why = "unknown", flow.reason and flow.reason.value
            if flow.process is not None:
                who = f"{flow.process.name!a} (pid {flow.process.pid})"
                why = flow.evidence and flow.evidence.value
            print(f"{who}  {flow.local} -> {flow.remote}  {why}", flush=True)
        if time.monotonic() > end_s:
            break
