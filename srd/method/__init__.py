"""The method: representation losses, and losses on logits."""
