"""Printed modules without what nothing reads."""

from __future__ import annotations

from archc.printing.unused import without_unused

WRITTEN = '''def kernel(x, y):
    """What is read stays."""
    a = x + 1
    b = a * 2  # read by c alone, which nobody reads
    c = (
        b + 1
    )
    d = e = x
    total = 0
    total += y
    for i in range(3):
        f = i
        y.store(d)
    g, h = x
    return g


k = 1
'''
KEPT = '''def kernel(x, y):
    """What is read stays."""
    d = e = x
    total = 0
    total += y
    for i in range(3):
        y.store(d)
    g, h = x
    return g


k = 1
'''


def test_what_nothing_reads_goes_until_all_is_read() -> None:
    assert without_unused(WRITTEN) == KEPT
    assert without_unused(KEPT) == KEPT
