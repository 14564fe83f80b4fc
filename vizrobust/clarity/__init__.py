"""How clear a feature image is, judged by networks and images that the compared checkpoints never saw."""
