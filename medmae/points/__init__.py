"""Methods for clouds of points: one published method per file."""
