"""An evaluation: batch by batch through each precision, what theory expects, what follows."""
