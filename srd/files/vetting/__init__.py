"""What looks over a file before anything is built from it."""
