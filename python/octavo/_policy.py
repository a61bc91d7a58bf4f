"""octavo.Policy: which weight has which format."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, Optional, Union

from octavo import _core
from octavo._errors import InvalidArgumentError
from octavo._quantize import Threads, quantize


class Part(NamedTuple):
    """One stored tensor of a quantized weight."""

    name: str
    kind: str  # "codes", "scales", "tensor_scale", ...
    dtype: str
    shape: tuple[int, ...]
    optional: bool


class Weight(NamedTuple):
    """One weight of a model."""

    name: str
    role: str
    layer: Optional[int]
    shape: tuple[int, ...]
    format: str
    rule: str  # What decided the format.
    parts: tuple[Part, ...]  # What may be sent instead of it; empty for bf16.
    group: Optional[int]  # Weights of one group share a scale.
    optional: bool  # An update may leave it out.


class Policy(Mapping[str, Weight]):
    """A mapping of the names of all weights, in forward order, to what they are.

    It comes from a server (`Client.manifest`), a model folder, or a policy file for one.
    """

    def __init__(self, core: _core.Policy):
        self._core = core
        manifest = json.loads(core.manifest())
        self.format: str = manifest["format"]
        self.layout: str = manifest["layout"]
        self.table_hash: str = manifest["table_hash"]
        self.weight_version: str = manifest["weight_version"]
        self.tied_head: Optional[str] = manifest["tied_head"]
        self.stacked = {entry["name"]: tuple(entry["shape"]) for entry in manifest["stacked"]}
        self._weights = {entry["name"]: _weight_of(entry) for entry in manifest["tensors"]}

    @classmethod
    def from_model(cls, model_dir: Union[str, os.PathLike], *,
                   format: Optional[str] = None,
                   policy: Union[str, os.PathLike, None] = None) -> Policy:
        """Of a model folder in HF layout: as it is stored, in `format`, or by a policy file.

        Args:
            model_dir: config.json is enough.
            format: What `--format` means; keeps and rules need a policy file.
            policy: Path of a policy file (docs/policy.md).
        """
        if format is not None and policy is not None:
            raise InvalidArgumentError("format: expected none beside a policy file")
        toml = None
        if policy is not None:
            with open(policy, encoding="utf-8") as file:
                toml = file.read()
        elif format is not None:
            toml = f"format = {json.dumps(format)}\n"
        return cls(_core.Policy.load(os.fspath(model_dir), toml))

    @classmethod
    def from_manifest(cls, text: str) -> Policy:
        """Of the JSON that `manifest()` and GET /octavo/v1/manifest give."""
        return cls(_core.Policy.parse(text))

    def manifest(self) -> str:
        """The whole of it as JSON (docs/api.md)."""
        return self._core.manifest()

    def quantized(self) -> dict[str, str]:
        """{name: format} of the weights that do not stay BF16."""
        return {name: weight.format for name, weight in self._weights.items()
                if weight.format != "bf16"}

    def quantize(self, name: str, tensor: Any, *, shared_amax: Optional[float] = None,
                 dtype: Optional[str] = None,
                 threads: Optional[Threads] = None) -> dict[str, _core.Array]:
        """`octavo.quantize` by the weight's own format, layout and names."""
        return quantize(tensor, self[name].format, name=name, layout=self.layout,
                        shared_amax=shared_amax, dtype=dtype, threads=threads)

    def __getitem__(self, name: str) -> Weight:
        return self._weights[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)

    def __repr__(self) -> str:
        return (f"<octavo.Policy {self.format}: {len(self.quantized())} of {len(self)} weights "
                f"quantized, table {self.table_hash}>")


def _weight_of(entry: dict[str, Any]) -> Weight:
    parts = tuple(Part(part["name"], part["kind"], part["dtype"], tuple(part["shape"]),
                       part["optional"]) for part in entry["parts"])
    return Weight(entry["name"], entry["role"], entry["layer"], tuple(entry["shape"]),
                  entry["format"], entry["rule"], parts, entry["group"], entry["optional"])
