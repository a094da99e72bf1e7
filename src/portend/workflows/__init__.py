"""Long ways through many parts: the demo, campaigns, refinement."""
