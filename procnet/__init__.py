"""Which process every byte on the network belongs to.

import procnet

with procnet.Monitor(interfaces=["lo"]) as monitor:
    for report in monitor:
        for row in report.processes:
            print(row.process.name, row.process.pid, row.sent.wire_bytes)
"""

from procnet.errors import (
    AccessError,
    CaptureError,
    ConservationError,
    LayoutError,
    LoadError,
    ProcnetError,
    UnsupportedError,
    UsageError,
)
from procnet.look import sockets
from procnet.model import (
    EventKind,
    Evidence,
    Feature,
    Features,
    Loss,
    Process,
    ProcessId,
    Reason,
    Socket,
    SocketScan,
    Support,
    Traffic,
)
from procnet.monitor import Monitor
from procnet.offline import IncompleteCaptureError, read_capture
from procnet.report.as_json import report_as_json
from procnet.report.as_text import report_as_text
from procnet.report.report import (
    Both,
    Endpoint,
    FlowRow,
    OnlyOnWire,
    ProcessRow,
    Report,
    SocketEnds,
)
from procnet.report.socket_table import SocketRow
from procnet.report.socket_use import SocketUse
from procnet.watch import Watch

__version__ = "0.1.0"

__all__ = [
    "AccessError",
    "Both",
    "CaptureError",
    "ConservationError",
    "Endpoint",
    "EventKind",
    "Evidence",
    "Feature",
    "Features",
    "FlowRow",
    "IncompleteCaptureError",
    "LayoutError",
    "LoadError",
    "Loss",
    "Monitor",
    "OnlyOnWire",
    "Process",
    "ProcessId",
    "ProcessRow",
    "ProcnetError",
    "Reason",
    "Report",
    "Socket",
    "SocketEnds",
    "SocketRow",
    "SocketScan",
    "SocketUse",
    "Support",
    "Traffic",
    "UnsupportedError",
    "UsageError",
    "Watch",
    "read_capture",
    "report_as_json",
    "report_as_text",
    "sockets",
]
