"""A bundle on disk: names, manifest, files and their hashes."""
