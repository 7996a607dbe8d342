"""What dreamstage is measured against: `python -m bench` (docs/bench.md)."""
