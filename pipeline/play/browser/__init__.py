"""Play in a browser: a page, its server, and many players in one world."""
