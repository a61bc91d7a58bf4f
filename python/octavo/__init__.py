"""Octavo for trainers: quantize weights, know a model's policy, and update running servers.

    policy = octavo.Policy.from_model("models/abacus-dense", format="fp8")
    parts = octavo.quantize(tensor, "fp8")

    client = octavo.Client("http://127.0.0.1:30000")
    with client.update(version=1) as update:
        update.put_all(model.named_parameters())

docs/python.md says more. Nothing here imports torch or NumPy.
"""

from octavo import _core
from octavo._client import Client, Update
from octavo._errors import (CancelledError, CorruptError, ExhaustedError, InvalidArgumentError,
                            NotFoundError, OctavoError, UnavailableError, UnsupportedError)
from octavo._fsdp2 import fsdp2_tensors
from octavo._policy import Part, Policy, Weight
from octavo._quantize import Threads, amax, quantize
from octavo._tensors import as_view

Array = _core.Array
View = _core.View
__version__ = _core.version

__all__ = [
    "Array", "CancelledError", "Client", "CorruptError", "ExhaustedError", "InvalidArgumentError",
    "NotFoundError", "OctavoError", "Part", "Policy", "Threads", "UnavailableError",
    "UnsupportedError", "Update", "View", "Weight", "amax", "as_view", "fsdp2_tensors", "quantize",
]
