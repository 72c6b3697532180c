"""Faces of the engine for people: the command line."""
