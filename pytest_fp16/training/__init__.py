"""A training: the gradient check, pairs of runs over seeds, and what follows."""
