"""Links with a rate and a delay where there are none."""
