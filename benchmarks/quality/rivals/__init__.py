"""Other ways to steer the base at about the cost of a plain step, from the same pairs or the same PersRM."""
