"""Benchmarks of the parts whose speed is promised, each against a reference measured in the same run."""
