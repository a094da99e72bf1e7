"""Networks as chains of blocks with exit branches: split, built, stored, evaluated."""
