"""What is measured beside gradients: steps, statistics, sure outputs, evaluations, guards."""
