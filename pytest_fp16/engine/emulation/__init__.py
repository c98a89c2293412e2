"""A 16-bit program without 16-bit hardware: what its operations do, and what a target refuses."""
