"""The teacher cache: what a teacher said of every view, kept on disk and replayed (docs/cache.md)."""
