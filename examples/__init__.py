"""Tool servers to read, run and copy."""
