"""The relays that are compared, in modules that import only what they need."""
