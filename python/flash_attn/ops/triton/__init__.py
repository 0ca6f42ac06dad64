"""The names of upstream's Triton kernels; computed here by PyTorch and by the core, on any device."""
