"""Runs on the Hugging Face Hub: their addresses, files and cards."""
