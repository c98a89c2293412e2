"""Where what a gradient shows was born: lost values and digits, zeros, whole numbers."""
