"""Architectures, one file each; their recipe sections in configs.py."""
