"""The gradient check: what it measures before a training, and the rules that judge it."""
