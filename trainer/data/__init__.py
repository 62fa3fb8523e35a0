"""From files to micro-batches: sources, cleaning, tokenization, lanes."""
