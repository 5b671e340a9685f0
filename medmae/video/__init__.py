"""Methods for clips (and volumes whose slices stand for time): one published method per file."""
