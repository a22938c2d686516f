"""Which tokens a reply may go on with."""
