"""An interactive session inside a world."""
