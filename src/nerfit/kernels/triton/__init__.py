"""The kernels for GPUs, written in Triton; with TRITON_INTERPRET=1 they also run, slowly, on tensors of the CPU."""
