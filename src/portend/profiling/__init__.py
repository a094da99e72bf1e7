"""Measurements of exits and of devices, by the code that the runtime runs."""
