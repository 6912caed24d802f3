"""Run the Autobahn|Testsuite against an echo server and demand that every case is strictly OK.

README.md says how to install the suite. Compression (families 12 and 13) is left out: Holdfast offers none.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from tests.conformance.echo_target import ECHO_SHELL, running_server

# The suite gives these no verdict: RFC 6455 leaves open what a server does with them.
WITHOUT_VERDICT = {"7.1.6", "7.13.1", "7.13.2"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--wstest", required=True, help="the suite's program")
    parser.add_argument("--server", default=ECHO_SHELL, help="echo server, run with `--port 0` added")
    parser.add_argument("--cases", nargs="+", default=["*"], help='such as "6.*" 7.1.1')
    parser.add_argument("--reports", help="keep the suite's HTML reports in this folder")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch, running_server(arguments.server) as port:
        reports = Path(arguments.reports or scratch).resolve()
        specification = {
            "outdir": str(reports),
            "servers": [{"agent": "holdfast", "url": f"ws://127.0.0.1:{port}"}],
            "cases": arguments.cases,
            "exclude-cases": ["12.*", "13.*"],
            "exclude-agent-cases": {},
        }
        path = Path(scratch, "specification.json")
        path.write_text(json.dumps(specification))
        command = [arguments.wstest, "-m", "fuzzingclient", "-s", str(path)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        results = json.loads((reports / "index.json").read_text())["holdfast"]
    print(len(results), "cases:", dict(Counter(result["behavior"] for result in results.values())))
    failed = [
        f"{case}: {result['behavior']}, close {result['behaviorClose']}"
        for case, result in results.items()
        if case not in WITHOUT_VERDICT and {result["behavior"], result["behaviorClose"]} != {"OK"}
    ]
    print(*failed, sep="\n", end="\n" if failed else "")
    return 1 if failed or not results else 0


if __name__ == "__main__":
    sys.exit(main())
