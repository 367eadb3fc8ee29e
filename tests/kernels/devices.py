"""Where kernels are tested: on the GPU if there is one, else on the CPU, interpreted by Triton or as compiled."""

import torch

from tools.ptx_machine.switch import compiled_target

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
COMPILED = compiled_target() is not None

# The interpreter's tl.dot multiplies the bits of bf16 operands as if they were integers.
KERNEL_DTYPES = (
    (torch.float32, torch.float16, torch.bfloat16)
    if DEVICE.type == "cuda" or COMPILED
    else (torch.float32, torch.float16)
)
