"""One config to one trained run: budget, program, state, loop, record. Imports ops, models and data."""
