"""Networks as chains of blocks with exit branches: built, trained, stored, and fed with samples.

Importing this package imports no torch: ``decoding`` needs numpy and Pillow only.
"""
