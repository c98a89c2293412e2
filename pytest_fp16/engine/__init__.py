"""What runs a model: evaluate, train, emulate, trace, randomness."""
