"""Images: where they come from, their views, batches and loaders."""
