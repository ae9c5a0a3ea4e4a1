"""Triton kernels, one file per family; each reads formula and layouts, kernel, launcher.

`tile` holds the device functions that the families share. Importing a family imports Triton, which reads
TRITON_INTERPRET as it decorates: nothing here is imported before a kernel is needed.

Image sizes and geometry are not specialised: one compilation serves every layer with the same flags and tile.

The tests run them in Triton's interpreter, and compiled in the emulator. `fastres info` says which GPU verified them.
"""
