"""Recording a gymnasium environment: what a command asks for, and a run's controller that acts."""
