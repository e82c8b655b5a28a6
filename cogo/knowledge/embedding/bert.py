"""The network of a small BERT as an ONNX graph, made from its safetensors weights.

Weights come as published, without anybody's export of them; so the graph that runs is this file's, and it
can be read. Input: token ids and mask. Output: the mean of the last layer's tokens, of length 1.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Weights = Mapping[str, NDArray[Any]]

OPSET, IR_VERSION = 20, 10
MASKED = -1e9
"""Added to the attention that padding gets."""
_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4"}


def read_safetensors(path: Path) -> Weights:
    """The tensors of a safetensors file: 8 bytes of length, a JSON header, then the numbers."""
    data = path.read_bytes()
    (length,) = struct.unpack_from("<Q", data)
    header = msgspec.json.decode(data[8 : 8 + length])
    found = {}
    for name, tensor in header.items():
        if name != "__metadata__":
            start, end = (8 + length + at for at in tensor["data_offsets"])
            numbers = np.frombuffer(data[start:end], dtype=_DTYPES[tensor["dtype"]])
            found[name] = numbers.reshape(tensor["shape"])
    return found


def build(weights: Weights, *, layers: int, heads: int, epsilon: float = 1e-12) -> onnx.ModelProto:
    """The whole network. `weights` are named as the Hugging Face BertModel names them."""
    return _Builder(weights, heads, epsilon).model(layers)


class _Builder:
    def __init__(self, weights: Weights, heads: int, epsilon: float) -> None:
        self._weights = weights
        self._heads = heads
        self._epsilon = epsilon
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []
        words = weights["embeddings.word_embeddings.weight"]
        self._width = int(words.shape[1])

    def model(self, layers: int) -> onnx.ModelProto:
        mask = self._op("Cast", "attention_mask", to=TensorProto.FLOAT)
        hidden = self._embeddings()
        unmasked = self._op("Sub", self._number(1.0), mask)
        penalty = self._op("Unsqueeze", self._op("Mul", unmasked, self._number(MASKED)), self._ints(1, 2))
        for layer in range(layers):
            hidden = self._layer(hidden, penalty, f"encoder.layer.{layer}")
        self._pool(hidden, mask)
        inputs = [
            helper.make_tensor_value_info(name, TensorProto.INT64, ["texts", "tokens"])
            for name in ("input_ids", "attention_mask")
        ]
        output = helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["texts", self._width])
        graph = helper.make_graph(self._nodes, "bert", inputs, [output], self._constants)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)

    def _embeddings(self) -> str:
        # Each text is one segment, so what its type adds can be part of the positions.
        types = self._weights["embeddings.token_type_embeddings.weight"]
        positions = self._weights["embeddings.position_embeddings.weight"] + types[0]
        length = self._op("Shape", "input_ids", start=1, end=2)
        place = self._op("Slice", self._constant(positions), self._ints(0), length, self._ints(0))
        words = self._constant(self._weights["embeddings.word_embeddings.weight"])
        return self._norm(self._op("Add", self._op("Gather", words, "input_ids"), place), "embeddings")

    def _layer(self, hidden: str, penalty: str, name: str) -> str:
        attended = self._attention(hidden, penalty, f"{name}.attention.self")
        dense = self._linear(attended, f"{name}.attention.output.dense")
        hidden = self._norm(self._op("Add", hidden, dense), f"{name}.attention.output")
        wide = self._op("Gelu", self._linear(hidden, f"{name}.intermediate.dense"))
        return self._norm(
            self._op("Add", hidden, self._linear(wide, f"{name}.output.dense")), f"{name}.output"
        )

    def _attention(self, hidden: str, penalty: str, name: str) -> str:
        each = self._width // self._heads
        shape = self._ints(0, 0, self._heads, each)

        def heads(part: str, order: list[int], scale: float = 1.0) -> str:
            flat = self._linear(hidden, f"{name}.{part}", scale)
            return self._op("Transpose", self._op("Reshape", flat, shape), perm=order)

        query = heads("query", [0, 2, 1, 3], 1 / math.sqrt(each))
        scores = self._op("MatMul", query, heads("key", [0, 2, 3, 1]))
        shares = self._op("Softmax", self._op("Add", scores, penalty), axis=-1)
        mixed = self._op("MatMul", shares, heads("value", [0, 2, 1, 3]))
        return self._op(
            "Reshape", self._op("Transpose", mixed, perm=[0, 2, 1, 3]), self._ints(0, 0, self._width)
        )

    def _pool(self, hidden: str, mask: str) -> None:
        each = self._op("Unsqueeze", mask, self._ints(2))
        total = self._op("ReduceSum", self._op("Mul", hidden, each), self._ints(1), keepdims=0)
        mean = self._op("Div", total, self._op("ReduceSum", each, self._ints(1), keepdims=0))
        length = self._op("ReduceL2", mean, self._ints(1), keepdims=1)
        self._nodes.append(helper.make_node("Div", [mean, length], ["embedding"]))

    # -- parts ----------------------------------------------------------------------------------

    def _linear(self, value: str, name: str, scale: float = 1.0) -> str:
        weight = self._constant(self._weights[f"{name}.weight"].T * np.float32(scale))
        bias = self._constant(self._weights[f"{name}.bias"] * np.float32(scale))
        return self._op("Add", self._op("MatMul", value, weight), bias)

    def _norm(self, value: str, name: str) -> str:
        scale, bias = (
            self._constant(self._weights[f"{name}.LayerNorm.{part}"]) for part in ("weight", "bias")
        )
        return self._op("LayerNormalization", value, scale, bias, axis=-1, epsilon=self._epsilon)

    def _op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        name = f"{kind}_{len(self._nodes)}"
        self._nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def _constant(self, numbers: NDArray[Any], kind: type[np.generic] = np.float32) -> str:
        name = f"constant_{len(self._constants)}"
        self._constants.append(numpy_helper.from_array(np.ascontiguousarray(numbers, kind), name))
        return name

    def _number(self, value: float) -> str:
        return self._constant(np.array(value))

    def _ints(self, *values: int) -> str:
        return self._constant(np.array(values), np.int64)
