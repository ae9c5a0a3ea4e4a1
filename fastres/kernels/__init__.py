"""Triton kernels, one file per family; each reads formula and layouts, kernel, launcher.

`tile` holds the device functions that the families share. Importing a family imports Triton, which reads
TRITON_INTERPRET as it decorates: nothing here is imported before a kernel is needed.

Image sizes and geometry are not specialised: one compilation serves every layer with the same flags and tile.

Compiled ahead of time and run in Triton's interpreter in the tests; emulated, not yet run on hardware.
"""
