"""Search for the best plan, exactly, and the baselines it must beat."""
