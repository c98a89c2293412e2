"""Running totals of a metric, fed batch by batch: the tasks' own, and the user's."""
