"""States to actions: policies, and what they are trained on."""
