"""Verification: a written bundle compared with torch."""
