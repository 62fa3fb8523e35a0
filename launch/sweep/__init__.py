"""`rankzero sweep`: train a recipe with many settings, and retrain the best ones with several seeds."""
