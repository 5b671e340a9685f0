"""Masked-autoencoder pre-training for 3-D medical images with missing modalities."""

__version__ = "0.1.0"
