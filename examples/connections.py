"""Prints each outbound connection, with the process that makes it, before its first packet.

$ sudo .venv/bin/python examples/connections.py
'curl' (pid 4711) '/usr/bin/curl'  10.0.0.5:49152 -> 10.0.0.9:443
"""

import os
import sys
import threading

import procnet

seconds = float(sys.argv[1]) if len(sys.argv) > 1 else None
here = os.stat("/proc/self/ns/net").st_ino

with procnet.Watch(netns=here) as watch:
    if seconds is not None:
        threading.Timer(seconds, watch.stop).start()
    print("watching", flush=True)
    for use in watch:
        if use.kind is not procnet.EventKind.CONNECT:
            continue
        who = "the kernel"
        if use.process is not None:
            # A program chooses its name, and its path may be any bytes: !a lets no escape through.
            who = f"{use.process.name!a} (pid {use.process.pid}) {use.process.exe!a}"
        print(f"{who}  {use.local} -> {use.remote}", flush=True)
