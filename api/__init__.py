"""Faces of the engine for people: the command line (cli), HTTP (server), manners of families (handlers)."""
