"""The mesh, and what a platform does its own way; each operation has a plain reference.

Imports config and tree alone.
"""
