"""One chunk of a recurrence as typed tile operations, its reverse, and the ways to read both."""
