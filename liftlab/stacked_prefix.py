"""The cartridges of many documents: each document's tokens see the keys and values of its own prefix before all."""

from __future__ import annotations

import peft
import torch
from torch import nn

Prefix = list[tuple[torch.Tensor, torch.Tensor]]  # of each layer: keys, values (documents, heads, tokens, head_dim)


class StackedPrefix(nn.Module):
    """`prefix`: (documents, tokens, keys and values of all layers), as peft's cartridge has them."""

    def __init__(self, model: nn.Module, config: peft.CartridgeConfig) -> None:
        super().__init__()
        text = model.config.get_text_config()
        self.tokens, self.frozen = config.num_virtual_tokens, config.num_frozen_tokens
        self._shape = (2 * text.num_hidden_layers, text.num_key_value_heads, -1)  # keys, values, keys, ...

    def states(self) -> Prefix:
        """What attention sees; the frozen tokens, which stand first, have no gradient."""
        whole = self.prefix
        if self.frozen:
            whole = torch.cat([whole[:, : self.frozen].detach(), whole[:, self.frozen :]], 1)
        of_layers = [part.transpose(1, 2) for part in whole.unflatten(-1, self._shape).unbind(2)]
        return list(zip(of_layers[::2], of_layers[1::2], strict=True))
