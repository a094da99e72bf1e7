"""Estimates of plans from profiles: exits, latency, intervals."""
