"""Decoding, metrics, and the file of predictions that every later analysis reads."""
