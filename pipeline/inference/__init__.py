"""Load the models of a run folder, make them fast, and export them."""
