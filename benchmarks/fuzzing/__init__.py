"""Malformed inputs for every reader, made from a seed, and the rules by which an accepted one is right."""
