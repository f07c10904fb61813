"""The canonical table, its cleaning, features, splits and sampling."""
