"""The verbs: train, profile, run, compare, deploy, from a network to answers in one call each."""
