"""Methods for images: one published method per file."""
