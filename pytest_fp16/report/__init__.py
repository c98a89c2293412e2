"""The report: its pydantic models, and each way to show them."""
