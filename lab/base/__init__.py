"""Trains the emoji world's base model and autoencoder; the result is in demo/weights."""
