"""What the coordinator's doctor looks at, one file a subject."""
