"""What we claim, as commands anybody can run: ``python -m benchmarks.<name> [--quick]``."""
