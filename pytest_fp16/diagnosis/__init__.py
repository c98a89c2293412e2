"""From evidence to culprit, mechanism and cure."""
