"""Studies over models: one file names a spec and what varies in it; every point is resolved, matched and counted.

takes                        gives                              in
text                         `Sweep`: axes, rules, a target     read.py, places.py
`Sweep`                      the specs of all points            points.py
a spec and a target          the number that reaches it         match.py
a resolved spec              parameters, FLOPs, bytes           evaluate.py, run.py
points                       a table, files                     table.py, files.py
"""

from __future__ import annotations

from archc.sweeps.evaluate import Match, Point
from archc.sweeps.run import Study, study

__all__ = ["Match", "Point", "Study", "study"]
