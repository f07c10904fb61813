"""What bounds the influence of one platform and, later, of one user."""
