"""What a preset means in every stage: one file a system, one table a stage (README.md)."""
