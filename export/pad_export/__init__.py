"""The export side of PAD-RT: checkpoints and PersRMs in, one verified step graph out. Needs torch; an app does not."""
