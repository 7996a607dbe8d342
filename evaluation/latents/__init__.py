"""What a run's predictions of latents are worth, for whoever is served them."""
