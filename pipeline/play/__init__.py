"""An interactive session in a world model."""
