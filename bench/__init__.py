"""What dreamstage is measured against: `python -m bench` (docs/reference/bench.md)."""
