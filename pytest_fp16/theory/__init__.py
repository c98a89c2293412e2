"""Pure mathematics on tensors and numbers; imports nothing of ours."""
