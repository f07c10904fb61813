"""What every platform and the coordinator agree on: data, model, wire format, evaluation."""

__version__ = "0.1.0"
