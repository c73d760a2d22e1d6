"""Many runs: sweeps, recipes, sizes of a ladder, where a sweep stands. Imports run and what is below it."""
