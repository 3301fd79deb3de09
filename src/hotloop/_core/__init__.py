"""What is under the public functions and layers: types, checks, arrays, the call, and settings."""
