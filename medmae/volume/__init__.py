"""Methods for 3-D medical volumes: one published method per file."""
