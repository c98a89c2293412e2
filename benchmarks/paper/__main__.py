"""``python -m benchmarks.paper``."""

from benchmarks.paper.table import main

if __name__ == "__main__":
    main()
