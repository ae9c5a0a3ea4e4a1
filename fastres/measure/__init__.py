"""Measuring: what the machine is, and the timing harness behind the command line and benchmarks/."""
