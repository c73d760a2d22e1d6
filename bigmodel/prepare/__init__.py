"""From raw corpora, images and published weights to the files that data/ reads. Imports errors and files alone."""
