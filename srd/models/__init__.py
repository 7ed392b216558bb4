"""Students and teachers, and what is read from them."""
