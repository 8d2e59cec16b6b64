"""One JSON object a second on standard output, for jq or a log shipper; ends after N of them.

$ sudo .venv/bin/python examples/json_dump.py 3 | jq -c '.processes[] | [.name, .sent]'
["curl",{"packets":7,"wire_bytes":486,"payload_bytes":74}]
"""

import json
import sys

import procnet

number = int(sys.argv[1]) if len(sys.argv) > 1 else 10

with procnet.Monitor(interval_s=1.0) as monitor:
    for _, report in zip(range(number), monitor, strict=False):
        print(json.dumps(procnet.report_as_json(report)), flush=True)
