"""Labeled samples from any source, and how their bytes become network inputs."""
