"""States to actions: policies and planners."""
