"""Encoders and sentence-transformers folders: models that give vectors and no text."""
