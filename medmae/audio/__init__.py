"""Methods for sound, as log-mel spectrograms: one published method per file."""
