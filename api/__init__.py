"""Faces of the engine for people: cli/ the command line, server/ the HTTP server, handlers/ model families."""
