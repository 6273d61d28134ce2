"""From a resolved spec to a graph: reads the equations of bodies, layer by layer."""
