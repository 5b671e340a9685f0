"""Model folders in the forms that other software takes: the Hugging Face hub, ONNX, MONAI bundles.

Whatever is written is tried before it takes its place: a folder is loaded, a graph is run next to the network it came
from. An export that is slightly wrong is worse than none, because nobody compares it again.
"""
