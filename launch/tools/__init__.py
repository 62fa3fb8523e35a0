"""Tools around a training. Nothing in `trainer` imports them."""
