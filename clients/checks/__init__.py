"""What a platform's doctor looks at, one file a subject."""
