"""Actions by search: candidates are rolled out in a world, costed, and the best is executed."""
