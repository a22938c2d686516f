"""What guidance gives and costs in the replies."""
