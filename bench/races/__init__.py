"""What areas share: paired rounds, checks, ceilings, the table and its figure."""
