"""One platform of the federation: its data, its training and its recommendations."""
