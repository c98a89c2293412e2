"""The 16-bit program in float32 arithmetic: where it rounds, and what an error there would do."""
