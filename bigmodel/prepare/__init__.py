"""From raw corpora, pictures and published weights to the files that data/ reads. Imports config and files alone."""
