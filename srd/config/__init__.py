"""Settings: the fields, and the layers that set them."""
