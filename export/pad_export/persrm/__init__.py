"""The personalized reward model (PersRM): reading one, making preference pairs, training one."""
