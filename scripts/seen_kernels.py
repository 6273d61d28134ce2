"""From reports of self-tests, the kernels that were seen right: `seen_kernels.py selftest_*.json > seen.json`.

A row says that on this GPU, with this driver and these versions, every check of a kernel in a dtype passed. A report
of a self-test that was ended early says so of all kernels but the last one that it reached.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path

COLUMNS = ["gpu", "driver", "triton", "torch", "kernel", "dtype", "checks"]


def rows(reports: list[dict]) -> list[list[str | int]]:
    """One row for each kernel, sizes and dtype without a failed check; torch forms are no kernels."""
    found = []
    for report in reports:
        checks: dict[tuple[str, str], list[bool]] = defaultdict(list)
        for check in report["checks"]:
            if check["implementation"] != "torch form":
                checks[f"{check['kernel']} {check['sizes']}", check["dtype"]].append(check["passed"])
        if not report["finished"] and report["checks"]:
            last = report["checks"][-1]
            for dtype in {check["dtype"] for check in report["checks"]}:
                checks.pop((f"{last['kernel']} {last['sizes']}", dtype), None)
        broken = {kernel for (kernel, dtype), passed in checks.items() if not dtype}  # something raised
        where = [report["device"], report.get("driver", "none"), report["triton"], report["torch"]]
        found += [
            [*where, kernel, dtype, len(passed)]
            for (kernel, dtype), passed in checks.items()
            if all(passed) and kernel not in broken
        ]
    return sorted(found)


def main() -> None:
    """Print the table as JSON."""
    reports = [
        json.loads(Path(file).read_text(encoding="utf-8")) for file in sys.argv[1:] if Path(file).is_file()
    ]
    print(json.dumps({"columns": COLUMNS, "rows": rows(reports)}, indent=2))


if __name__ == "__main__":
    main()
