"""The nouns: small frozen values that check their own laws when they are built (numpy only)."""
