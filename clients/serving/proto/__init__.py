"""The published interface, and the code that protoc makes of it (see docs/serving.md)."""
