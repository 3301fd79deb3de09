"""torch.nn's recurrent layers and cells on hotloop's kernels: one line for a model that is there.

>>> import torch, hotloop.torch
>>> model = torch.nn.ModuleDict({"encoder": torch.nn.GRU(8, 16), "head": torch.nn.Linear(16, 2)})
>>> print(hotloop.torch.replace_modules(model))
replaced encoder: GRU

The classes are subclasses of torch's, with the same constructors, parameters and results. What the kernels cannot do is
left to torch: docs/torch.md says what that is.
"""

from ._dynamo import allow_in_compile, watch
from ._modules import GRU, LSTM, RNN, GRUCell, LSTMCell, RNNCell, _Layers
from ._swap import Replaced, replace_modules, restore_modules
from ._threads import share_threads
from ._tools import adapt

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "GRUCell",
    "LSTMCell",
    "RNNCell",
    "Replaced",
    "allow_in_compile",
    "replace_modules",
    "restore_modules",
    "share_threads",
]

watch(_Layers)
adapt()
del adapt, watch
