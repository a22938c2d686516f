"""Altered inputs, full disks and kills."""
