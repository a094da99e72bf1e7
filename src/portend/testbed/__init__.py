"""A plan over agents on one machine with emulated links, measured span by span."""
