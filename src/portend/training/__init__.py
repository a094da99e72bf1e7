"""Training and calibrating the exits of a network."""
