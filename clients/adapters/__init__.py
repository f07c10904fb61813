"""One file a source: each turns a platform's own rows into the canonical tables."""
