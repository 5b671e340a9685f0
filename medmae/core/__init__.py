"""The masking core: tokens, plans, targets, losses, and the one generic step built from them.

It imports torch (and jaxtyping for shapes) only, and knows no file, no image format and no network.
"""
