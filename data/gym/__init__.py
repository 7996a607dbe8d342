"""Recordings of any gymnasium environment: what is opened, how it is seen, who acts."""
