"""A convolutional teacher distilled into DeiT with a convolutional stem."""
