"""The train step compiled for TPU topologies that aren't there: memory, collectives, layout.

Imports run and what is below it.
"""
