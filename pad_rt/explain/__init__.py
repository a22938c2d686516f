"""A page that shows what the reward changed in a reply, token by token."""
