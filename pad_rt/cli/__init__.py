"""The command pad."""
