"""A platform's recommendation service: its model and its users' latest events behind gRPC and HTTP."""
