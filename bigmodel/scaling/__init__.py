"""Rows, laws, fits, figures, reports: from result files to a plan. Imports nothing here, so that it costs nothing."""
