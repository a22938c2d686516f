"""A written bundle held against torch."""
