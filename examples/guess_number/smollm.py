"""SmolLM2 in torch, read from a GGUF file, with a LoRA adapter that can be trained and written back as GGUF.

The layout is the file's own throughout: rotary pairs are neighbours, as llama.cpp has them, so weights and adapter need no
reordering on the way in or out.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import gguf
import numpy as np
import torch
from gguf.quants import dequantize
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
from torch import Tensor, nn
from torch.nn import functional as F

ADAPTED = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
"""The projections of each block that get an adapter."""


class KeysValues(NamedTuple):
    """Keys and values for later tokens, each of shape (sequences, heads, length, width of a head)."""

    keys: Tensor
    values: Tensor


class Adapted(nn.Module):  # type: ignore[misc]  # torch is no dependency of the project
    """A frozen projection and its low-rank correction: W x + (alpha / rank) B A x."""

    def __init__(self, weight: Tensor, rank: int, alpha: float, generator: torch.Generator) -> None:
        super().__init__()
        rows, columns = weight.shape
        self.register_buffer("weight", weight)
        self.lora_a = nn.Parameter(torch.randn(rank, columns, generator=generator) / columns**0.5)
        self.lora_b = nn.Parameter(torch.zeros(rows, rank))
        self._scale = alpha / rank

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight) + self._scale * F.linear(F.linear(x, self.lora_a), self.lora_b)


class SmolLM(nn.Module):  # type: ignore[misc]
    """The model with its adapter. Only the adapter's matrices are trained."""

    def __init__(self, path: Path, *, rank: int, alpha: float, seed: int) -> None:
        """Reads the GGUF file at `path`. Raises OSError or ValueError when it cannot be read, KeyError when it is not a Llama."""
        super().__init__()
        reader = gguf.GGUFReader(path)
        generator = torch.Generator().manual_seed(seed)
        weights = {t.name: torch.tensor(dequantize(t.data, t.tensor_type)) for t in reader.tensors}

        def number(key: str) -> float:
            return float(reader.fields[f"llama.{key}"].contents())

        self.alpha = alpha
        self.tokenizer = _tokenizer(reader)
        self._epsilon = number("attention.layer_norm_rms_epsilon")
        self._heads, self._kv_heads = int(number("attention.head_count")), int(number("attention.head_count_kv"))
        self._blocks = nn.ModuleList()
        for index in range(int(number("block_count"))):
            named = {name: weights[f"blk.{index}.{name}.weight"] for name in (*ADAPTED, "attn_norm", "ffn_norm")}
            block = nn.ModuleDict({name: Adapted(named[name], rank, alpha, generator) for name in ADAPTED})
            for name in ("attn_norm", "ffn_norm"):
                block.register_buffer(name, named[name])
            self._blocks.append(block)
        self.register_buffer("_embedding", weights["token_embd.weight"])
        self.register_buffer("_output_norm", weights["output_norm.weight"])
        self._inverse_frequencies = 1 / number("rope.freq_base") ** (
            torch.arange(0, number("rope.dimension_count"), 2) / number("rope.dimension_count")
        )

    def forward(self, opening: Tensor, tokens: Tensor) -> Tensor:
        """Hidden states, shape (sequences, length, width), of token ids, shape (sequences, length), that follow an opening.

        opening: the token ids, shape (length,), that begin every sequence; computed once for all.
        """
        angles = torch.outer(torch.arange(len(opening) + tokens.shape[1]), self._inverse_frequencies)
        rotation = torch.polar(torch.ones_like(angles), angles)
        start, rest = F.embedding(opening[None], self._embedding), F.embedding(tokens, self._embedding)
        for block in self._blocks:
            start, seen = self._step(block, start, rotation[: len(opening)], None)
            rest, _ = self._step(block, rest, rotation[len(opening) :], seen)
        return self._normal(rest, self._output_norm)

    def log_probabilities(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Log-probability of each target token, shape (n,), given hidden states of shape (n, width)."""
        return -F.cross_entropy(F.linear(hidden, self._embedding), targets, reduction="none")

    def trained(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The adapter's matrices by llama.cpp's names."""
        for index, block in enumerate(self._blocks):
            for name in ADAPTED:
                yield f"blk.{index}.{name}.weight.lora_a", block[name].lora_a
                yield f"blk.{index}.{name}.weight.lora_b", block[name].lora_b

    def write_adapter(self, path: Path) -> None:
        """Writes the adapter as a GGUF file of half-precision numbers, the format of llama.cpp's convert_lora_to_gguf."""
        writer = gguf.GGUFWriter(path, "llama")
        writer.add_type("adapter")
        writer.add_string("adapter.type", "lora")
        writer.add_float32("adapter.lora.alpha", self.alpha)
        for name, parameter in self.trained():
            writer.add_tensor(name, parameter.detach().numpy().astype(np.float16))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()

    def read_adapter(self, path: Path) -> None:
        """Reads a file of `write_adapter`. Raises OSError or ValueError for another file, KeyError for another model's."""
        matrices = {tensor.name: tensor.data for tensor in gguf.GGUFReader(path).tensors}
        with torch.no_grad():
            for name, parameter in self.trained():
                parameter.copy_(torch.tensor(matrices[name].astype(np.float32)))

    def _normal(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), weight, self._epsilon)

    def _step(
        self, block: nn.ModuleDict, x: Tensor, rotation: Tensor, seen: KeysValues | None
    ) -> tuple[Tensor, KeysValues]:
        mixed, keys_values = self._attention(block, self._normal(x, block.attn_norm), rotation, seen)
        x = x + mixed
        y = self._normal(x, block.ffn_norm)
        return x + block["ffn_down"](F.silu(block["ffn_gate"](y)) * block["ffn_up"](y)), keys_values

    def _attention(
        self, block: nn.ModuleDict, x: Tensor, rotation: Tensor, seen: KeysValues | None
    ) -> tuple[Tensor, KeysValues]:
        batch, length, _ = x.shape

        def heads(name: str, count: int) -> Tensor:
            return block[name](x).view(batch, length, count, -1).transpose(1, 2)

        q = _rotated(heads("attn_q", self._heads), rotation)
        k = _rotated(heads("attn_k", self._kv_heads), rotation)
        v = heads("attn_v", self._kv_heads)
        if seen is not None:
            k, v = (
                torch.cat([old.expand(batch, -1, -1, -1), new], dim=2)
                for old, new in ((seen.keys, k), (seen.values, v))
            )
        may_look = torch.ones(length, k.shape[2], dtype=torch.bool).tril(k.shape[2] - length)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=may_look, enable_gqa=True)
        return block["attn_output"](mixed.transpose(1, 2).reshape(batch, length, -1)), KeysValues(k, v)


def _rotated(x: Tensor, rotation: Tensor) -> Tensor:
    pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * rotation).flatten(-2)


def _tokenizer(reader: gguf.GGUFReader) -> Tokenizer:
    """The file's own byte-level BPE; SmolLM2 splits numbers into digits."""
    tokens = reader.fields["tokenizer.ggml.tokens"].contents()
    merges = [tuple(merge.split(" ")) for merge in reader.fields["tokenizer.ggml.merges"].contents()]
    kinds = reader.fields["tokenizer.ggml.token_type"].contents()
    tokenizer = Tokenizer(BPE({token: index for index, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = ByteLevelDecoder()
    control = [token for token, kind in zip(tokens, kinds, strict=True) if kind == gguf.TokenType.CONTROL]
    tokenizer.add_special_tokens(control)
    return tokenizer
