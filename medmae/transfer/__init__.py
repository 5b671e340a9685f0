"""What a pre-trained encoder becomes: networks for other tasks, and nnU-Net's."""
