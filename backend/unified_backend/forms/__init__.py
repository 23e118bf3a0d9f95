"""The form of a source that engines are built from: see `ladder`."""
