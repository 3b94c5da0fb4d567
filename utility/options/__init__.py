"""The options of the two scripts, read before torch is."""
