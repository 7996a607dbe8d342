"""Modules and their configs: no files, no flags, no optimizers."""
