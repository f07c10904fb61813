"""Many platforms on one machine, through the same code paths as the real federation."""
