"""The report: its keys, plots and page."""
