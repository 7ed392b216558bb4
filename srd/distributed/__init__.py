"""Several processes that compute what one would."""
