"""Writing a folder, all or nothing."""
