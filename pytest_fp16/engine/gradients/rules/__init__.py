"""What the measurements mean: a rule for each thing that may be wrong, and the verdict."""
