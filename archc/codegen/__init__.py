"""From the graph to source text."""
