"""What is played in the real simulator, and by whom."""
