"""Videos, and images in a row, without actions."""
