"""Measurements of the server: load, peers, what HTTP costs, how it lives and how it stops."""
