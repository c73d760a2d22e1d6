"""Points in, laws out: rows, fits, intervals, frontiers, plans, figures, reports. Imports config and files alone."""
