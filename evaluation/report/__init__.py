"""The report: its metrics, plots and page."""
