"""What is done with a trained run: evaluation, generation, checks of its parametrisation.

Imports run and what is below it.
"""
