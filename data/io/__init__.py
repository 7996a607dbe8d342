"""Files: written whole, downloaded, known by their content."""
