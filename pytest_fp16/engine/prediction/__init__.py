"""What theory predicts of a traced program: σ, bounds, certificates."""
