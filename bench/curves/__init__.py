"""How cost grows: what is measured at each size, and its curves."""
