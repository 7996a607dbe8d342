"""Push-T (Chi et al., arXiv:2303.04137): the simulator, its demonstrations, a scripted policy."""
