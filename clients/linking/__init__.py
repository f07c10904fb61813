"""Linking this platform's users or items with another platform's, and what that leaves on disk."""
