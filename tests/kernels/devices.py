"""Where kernels are tested: on the GPU if there is one, else through Triton's interpreter on the CPU."""

import torch

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

# The interpreter's tl.dot multiplies the bits of bf16 operands as if they were integers.
KERNEL_DTYPES = (
    (torch.float32, torch.float16, torch.bfloat16) if DEVICE.type == "cuda" else (torch.float32, torch.float16)
)
