"""A library of ours in the place of NVIDIA's, for the real bindings to load. See fake.c and harness.py."""
