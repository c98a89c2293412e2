"""The paper behind this project, reproduced: ``python -m benchmarks.paper`` (see `table`)."""
