"""From a run folder to models that are ready to be used."""
