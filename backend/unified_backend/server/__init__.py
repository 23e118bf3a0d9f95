"""The Triton server as seen from outside: found, fitted with this backend, run. Serving never imports it."""
