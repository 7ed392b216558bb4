"""From a configuration to a trained student."""
