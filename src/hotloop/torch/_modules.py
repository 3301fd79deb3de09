"""The classes: torch's own, with another forward for what the kernels can do."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from operator import is_
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch.autograd import forward_ad
from torch.nn.utils.rnn import PackedSequence

from .._core.checks import check_return_states
from .._core.types import CELLS, LSTM_PROJECTED, PARAMETERS, RNN_TANH, Cell
from . import _ops, _prepared, _private
from ._bridge import Call
from ._packed import MANY_ROWS, PLAIN, Kept
from ._shapes import of_weights

Tensor = torch.Tensor
_STRIDED = torch.strided

# A cell's call for one row reads its weights and does little else. Packed ones are read besides the hash's reading of
# the others, so from this size in bytes on torch, which reads them once, is faster: LSTM H256 (2.1 MB) 51 us in place
# of 61, H512 136 in place of 222. With two rows it is slower up to H512.
_READ_ONCE = 1_000_000

_DTYPES = (torch.float32, torch.float64)
# What decides the shapes and equations of a call: `Kept` was made for what they were.
_DECIDING = frozenset((
    "mode", "nonlinearity", "input_size", "hidden_size", "num_layers", "bias", "bidirectional", "dropout", "proj_size",
))  # fmt: skip
_NAMES = (
    RNN_TANH.weight_names,
    PARAMETERS,
)  # of a cell's parameters, without biases and with them: the same of all cells
_MODES = {"LSTM": "lstm", "GRU": "gru", "RNN_TANH": "rnn_tanh", "RNN_RELU": "rnn_relu"}

if TYPE_CHECKING:
    _Base = torch.nn.Module
else:
    _Base = object


def _traced() -> bool:
    """Whether something looks at the operations of a call instead of only its result."""
    if torch.compiler.is_compiling():  # first: dynamo, which reads this too, knows no other of them
        return True
    return _private.count_modes() > 0 or _private.tracing_state() is not None


def _elsewhere() -> str | None:
    """What is the matter where torch itself has to run the call, whatever its tensors are."""
    # Not `is not None`: of what dynamo has for this value it knows the type alone.
    if not isinstance(_private.current_transform(), type(None)):
        return "a call inside a transform of torch.func"
    if forward_ad._current_level >= 0:
        return "a call with forward-mode differentiation"
    if _private.is_any_autocast_enabled():
        return "a call under autocast"
    return None


def _exporting_to_onnx() -> bool:
    """Whether a traced call becomes ONNX, which has operators for torch's layers and none for these ops."""
    onnx = sys.modules.get("torch.onnx")
    return onnx is not None and onnx.is_in_onnx_export()


def _unfit(name: str, tensor: Any, dtype: torch.dtype, traced: bool) -> str | None:
    """What is the matter with a tensor that backends cannot take as it is."""
    if not isinstance(tensor, Tensor) or (not traced and type(tensor) not in PLAIN):
        return f"{name} of type {type(tensor).__name__}"
    if tensor.device.type != "cpu":
        return f"{name} on {tensor.device}"
    if tensor.layout is not torch.strided:
        return f"{name} of layout {tensor.layout}"
    if tensor.dtype is not dtype or dtype not in _DTYPES:
        return f"{name} of {tensor.dtype}"
    if not traced and _private.is_wrapped(tensor):
        return f"{name} that has outlived a transform of torch.func"
    return None


def _flags(resets: Any, traced: bool) -> Any:
    """`resets` as bool: code of reinforcement learning has them in float or integer tensors of zeros and ones."""
    if not isinstance(resets, Tensor) or resets.dtype is torch.bool:
        return resets
    flags = resets != 0
    if not traced and not torch.equal(resets, flags.to(resets.dtype)):
        wrong = resets[flags & (resets != 1)][0].item()
        raise ValueError(f"resets: expected True and False, or 1 and 0, got {wrong} in a tensor of {resets.dtype}")
    return flags


def _fits(state: Any, dtype: torch.dtype, shape: tuple[int, ...]) -> bool:
    return (
        type(state) is Tensor and state.dtype is dtype and state.shape == shape and state.is_cpu
        and state.layout is _STRIDED and state.is_contiguous() and not state.is_neg() and not _private.is_wrapped(state)
    )  # fmt: skip


class _Recurrent(_Base):
    """What all have in common."""

    _torch: ClassVar[type[torch.nn.Module]]  # whose subclass it is
    _trained_by_torch: ClassVar[bool] = False

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = dict(getattr(super(), "__getstate__", lambda: self.__dict__)())
        state.pop("_hotloop", None)
        return state

    def _as_torchs(self) -> Any:
        """Torch's own layer on the same parameters and hooks."""
        theirs = self._torch.__new__(self._torch)
        theirs.__setstate__(self.__getstate__())
        return theirs

    def __prepare_scriptable__(self) -> Any:
        """What torch.jit.script takes in the place of this one."""
        return self._as_torchs()

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _DECIDING:
            self.__dict__.pop("_hotloop", None)
        super().__setattr__(name, value)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self.__dict__.pop("_hotloop", None)  # it would keep the memory that the parameters are about to leave
        return super()._apply(fn, recurse)

    def _cell(self) -> Cell | None:
        raise NotImplementedError

    def _own(self) -> list[Any] | None:
        """The weights, in torch's order, where all are parameters and nothing has been put in their place."""
        raise NotImplementedError

    def _others(self) -> list[Any]:
        """The weights where they are not, evaluated as often as torch does: some change with each evaluation."""
        raise NotImplementedError

    def _call(self, layout: str) -> Call:
        raise NotImplementedError

    def _expected(self) -> list[tuple[int, ...]]:
        """The shapes of the weights."""
        raise NotImplementedError

    def _check_weights(self, names: Sequence[str]) -> None:
        """What torch does not: its LSTM reads and writes beside the memory of weights that do not fit, and with weights
        on several devices cells return memory that nobody has written to.
        """
        tensors = None if _traced() or self._cell() is None else self._own()
        if tensors is None or any(type(tensor) not in PLAIN for tensor in tensors):
            return
        dtype, device, of_lstm = tensors[0].dtype, tensors[0].device, isinstance(self, torch.nn.LSTM)
        for name, tensor, shape in zip(names, tensors, self._expected(), strict=False):
            if of_lstm and tuple(tensor.shape) != shape:
                raise RuntimeError(f"{name}: expected shape {shape}, got {tuple(tensor.shape)}")
            if of_lstm and tensor.dtype is not dtype:
                raise RuntimeError(f"{name}: expected {dtype} (the dtype of {names[0]}), got {tensor.dtype}")
            if tensor.device != device:
                raise RuntimeError(f"{name}: expected a tensor on {device}, where {names[0]} is, got {tensor.device}")

    def _unfit_weights(self, tensors: Sequence[Any], traced: bool) -> str | None:
        dtype = tensors[0].dtype if isinstance(tensors[0], Tensor) else torch.float32
        if not self.input_size or not self.hidden_size:
            return f"input_size = {self.input_size}, hidden_size = {self.hidden_size}"
        for tensor, shape in zip(tensors, self._expected(), strict=True):
            if reason := _unfit("a weight", tensor, dtype, traced):
                return reason
            if tuple(tensor.shape) != shape:
                return f"a weight of shape {tuple(tensor.shape)}"
        return None

    def _unfit_traced(self, tensors: Sequence[Any]) -> str | None:
        return "an export to ONNX" if _exporting_to_onnx() else self._unfit_weights(tensors, True)

    def _kept(self, tensors: list[Any]) -> Kept | str:
        """Views of the weights, or what is the matter with them."""
        kept: Kept | None = self.__dict__.get("_hotloop")
        if kept is not None and kept.holds(tensors):
            return kept
        for tensor in tensors:
            if type(tensor) not in PLAIN:
                return f"a weight of type {type(tensor).__name__}"
        # What is checked and kept is of one moment: another thread may assign to `.data` at any time.
        held = [tensor.detach() for tensor in tensors]
        reason = self._unfit_weights(held, False)
        if reason is not None:
            return reason
        kept = Kept(self._call("time_major"), held)
        if all(type(tensor) is torch.nn.Parameter for tensor in tensors):  # others are a caller's, for this call
            self.__dict__["_hotloop"] = kept
        return kept

    def _prepared_call(self, layout: str, x: Tensor, hx: Any, resets: Any = None) -> Any:
        """A call that can be prepared, of one layer in one direction on dense tensors: output, h_n and c_n, those that
        there are. None for any other; then `_run` converts what it is given, or says what is wrong.
        """
        kept: Kept | None = self.__dict__.get("_hotloop")
        tensors = self._own()
        if kept is None or tensors is None or not kept.holds(tensors) or not kept.prepares:
            return None
        dtype, shape = kept.dtype, x.shape
        if x.dtype is not dtype or not x.is_cpu or x.layout is not _STRIDED or not x.is_contiguous():
            return None
        try:
            if x.is_neg() or not x.data_ptr():  # none: no elements, a zero tensor, or an error
                return None
        except RuntimeError:  # it has outlived a transform of torch.func
            return None
        if layout == "step":
            if len(shape) != 2:
                return None
            seq_len, batch_size, features = 1, *shape
            rows: tuple[int, ...] = (batch_size,)
        elif len(shape) == 3:
            seq_len, batch_size, features = shape
            if layout == "batch_first":
                seq_len, batch_size = batch_size, seq_len
                if seq_len > 1 and batch_size > 1:
                    return None
            rows = 1, batch_size
        else:
            return None
        if features != self.input_size:
            return None
        if resets is not None and not _fits(resets, torch.bool, shape[:2]):
            return None
        h0 = c0 = None
        states = *rows, kept.call.output_size
        if hx is not None:
            if kept.call.cell.has_c:
                if type(hx) is not tuple or len(hx) != 2:
                    return None
                h0, c0 = hx
                if not _fits(c0, dtype, (*rows, kept.call.hidden_size)):
                    return None
            else:
                h0 = hx
            if not _fits(h0, dtype, states):
                return None
        if torch.is_grad_enabled() and (
            tensors[0].requires_grad
            or x.requires_grad
            or any([tensor.requires_grad for tensor in tensors])
            or (h0 is not None and h0.requires_grad)
            or (c0 is not None and c0.requires_grad)
        ):
            if resets is not None or self._trained_by_torch:  # backward needs a copy of resets
                return None
            return _ops.apply(kept.plain(layout), kept, (seq_len, batch_size), x, h0, c0, *tensors)
        return _prepared.infer(kept, tensors, (seq_len, batch_size), states, x, h0, c0, resets)

    def _run(self, call: Call, x: Tensor, h0: Tensor | None, c0: Tensor | None, tensors: list[Any]) -> Any:
        """output, h_n, c_n and c, those that there are; or what is the matter."""
        kept = self._kept(tensors)
        if isinstance(kept, str):
            return kept
        if torch.is_grad_enabled() and (
            x.requires_grad
            or any(tensor.requires_grad for tensor in tensors)
            or (h0 is not None and h0.requires_grad)
            or (c0 is not None and c0.requires_grad)
        ):
            return _ops.apply(call, kept, None, x, h0, c0, *tensors)
        few = x.numel() < MANY_ROWS * x.shape[-1]
        results, _ = call.forward(x, h0, c0, kept.weights, kept.packed(tensors) if few else None, False)
        return [result for result in results if result is not None]

    def _run_traced(
        self, call: Call, x: Tensor, h0: Tensor | None, c0: Tensor | None, tensors: list[Any]
    ) -> list[Tensor]:
        """The same as an op."""
        if torch.compiler.is_exporting() or _private.tracing_state() is not None:
            # A program that is kept: what it is for is the module's mode. It can be differentiated in any case.
            training = self.training
        else:
            training = torch.is_grad_enabled() and any(
                tensor is not None and tensor.requires_grad for tensor in (x, h0, c0, *tensors)
            )
        given = x, h0, c0, tensors, *_ops.arguments(call)
        ops = torch.ops.hotloop
        output, h_n, c_n, c, *_ = ops.forward(*given, True) if training else ops.infer(*given)
        return [output, h_n, *[c_n] * call.cell.has_c, *[c] * call.return_states]


class _Layers(_Recurrent):
    """RNN, LSTM and GRU."""

    if TYPE_CHECKING:
        mode: str
        input_size: int
        hidden_size: int
        num_layers: int
        bias: bool
        batch_first: bool
        dropout: float
        bidirectional: bool
        proj_size: int
        _flat_weights_names: list[str]
        _flat_weights: list[Any]
        _flat_weight_refs: list[Any]
        _update_flat_weights: Any

    def _cell(self) -> Cell | None:
        if self.proj_size:
            return LSTM_PROJECTED if self.mode == "LSTM" else None
        return CELLS.get(_MODES.get(self.mode, ""))

    def _own(self) -> list[Any] | None:
        parameters, given = self._parameters, self._flat_weights
        tensors = list(parameters.values())
        if len(given) == len(tensors) and all(map(is_, given, tensors)):
            return tensors
        try:
            tensors = [parameters[name] for name in self._flat_weights_names]
        except KeyError:  # made by a hook or a property, as by weight_norm
            return None
        # As in torch's layers: where parameters were put in the place of others, as by functional_call, they count;
        # else what was assigned to `_flat_weights`, as code for quantization and LoRA does.
        refs = self._flat_weight_refs
        same = [ref is not None and ref() for ref in refs]
        return None if len(same) == len(tensors) and all(map(is_, same, tensors)) else tensors

    def _others(self) -> list[Any]:
        self._update_flat_weights()
        return self._flat_weights

    def _call(self, layout: str) -> Call:
        cell = self._cell()
        assert cell is not None
        return Call(
            cell, self.num_layers, 2 if self.bidirectional else 1, self.hidden_size, self.bias, layout, self.dropout,
            proj_size=self.proj_size,
        )  # fmt: skip

    def _expected(self) -> list[tuple[int, ...]]:
        return [shape for _, shape in of_weights(self._call("time_major"), self.input_size)]

    def forward(
        self,
        input: Any,
        hx: Any = None,
        *,
        lengths: Any = None,
        resets: Any = None,
        return_states: bool = False,
        threads: int | None = None,
    ) -> Any:
        """Run all layers over whole sequences.

        Parameters
        ----------
        input : Tensor or PackedSequence
            (seq_len, batch_size, input_size), (batch_size, seq_len, input_size) with `batch_first`,
            (seq_len, input_size) for one unbatched sequence.
        hx : Tensor or (Tensor, Tensor), optional
            h0, for an LSTM (h0, c0), each (num_layers*num_directions, batch_size, hidden_size), zero by default.
        lengths : Tensor or sequence of int, optional
            The steps of each sequence of a padded batch, in any order; as `hotloop.lstm` has it. Output is zero in the
            padding, states are those at each sequence's own end.
        resets : Tensor (seq_len, batch_size) of bool, optional
            True at the first step of an episode in time, in the layout of `input`: no state passes from one episode
            into another, in either direction.
        return_states : bool
            Also return c of every step of the last layer; LSTM only.
        threads : int, optional
            At most this many threads; by default as many as torch.get_num_threads() and hotloop.get_num_threads()
            both allow.

        Returns
        -------
        output, state
            As torch's; and c, like output, with `return_states`.

        Raises
        ------
        TypeError, ValueError
            An argument that torch's layer does not have is wrong, or the call is one that torch has to run; with
            torch's arguments alone, the errors are torch's.
        """
        if (
            type(input) is Tensor and lengths is None and return_states is False and threads is None
            and not _traced() and _elsewhere() is None
        ):  # fmt: skip
            results = self._prepared_call("batch_first" if self.batch_first else "time_major", input, hx, resets)
            if results is not None:
                return (results[0], results[1:]) if len(results) == 3 else results
        extra = lengths is not None or resets is not None or return_states is not False or threads is not None
        reason = _elsewhere()
        if reason is None:
            results = self._layers(input, hx, lengths, resets, return_states, threads, extra)
            if not isinstance(results, str):
                return results
            reason = results
        if extra:
            raise TypeError(
                "lengths, resets, return_states, threads: expected a call that hotloop runs (dense tensors of float32 "
                f"or float64 on the CPU, of the shapes that torch documents), got {reason}"
            )
        self._check_weights(self._flat_weights_names)
        return super().forward(input, hx)

    def _layers(
        self, input: Any, hx: Any, lengths: Any, resets: Any, return_states: Any, threads: Any, extra: bool
    ) -> Any:
        """The results as the caller sees them, or why they have to be torch's."""
        traced, x, sizes = _traced(), input, None
        if isinstance(input, PackedSequence):
            x, sizes = input.data, input.batch_sizes
            for name in ("batch_sizes", "unsorted_indices"):
                indices = getattr(input, name)
                if indices is not None and indices.dtype is not torch.int64:
                    return f"{name} of {indices.dtype}"
        if self._cell() is None:
            return f"mode = {self.mode!r}, proj_size = {self.proj_size}"
        if not isinstance(x, Tensor):
            return f"input of type {type(x).__name__}"
        tensors = self._own() or self._others()
        if len(tensors) != len(self._flat_weights_names) or not isinstance(tensors[0], Tensor):
            return "weights that are no tensors, or of another number"
        dtype = tensors[0].dtype
        if reason := _unfit("input", x, dtype, traced):
            return reason
        if traced and (reason := self._unfit_traced(tensors)):
            return reason
        shape = x.shape
        if len(shape) not in ((2, 3) if sizes is None else (2,)) or shape[-1] != self.input_size:
            return f"input of shape {tuple(shape)}"
        if sizes is not None:
            layout, count = "packed", None
        elif len(shape) == 2:
            layout, count = "unbatched", 1
        elif self.batch_first:
            layout, count = "batch_first", shape[0]
        else:
            layout, count = "time_major", shape[1]
        if not extra and not traced and not x.numel():
            return "no steps or no rows"
        call = self._call(layout)
        if sizes is not None:
            if not traced and int(sizes.sum()) != shape[0]:
                return f"input of {shape[0]} rows with batch_sizes that make {int(sizes.sum())}"
            call.batch_sizes, call.unsorted = sizes, input.unsorted_indices
            count = int(sizes[0]) if call.unsorted is None else call.unsorted.shape[0]
            call.batch_size = count
            if lengths is not None or resets is not None:
                raise ValueError("lengths, resets: expected padded input, got a PackedSequence")
        h0: Any = None
        c0: Any = None
        if hx is not None:
            if call.cell.has_c:
                if not isinstance(hx, (tuple, list)) or len(hx) != 2:
                    return "hx that is not (h0, c0)"
                h0, c0 = hx
            else:
                h0 = hx
            first = call.layers * call.directions
            lead = (first,) if layout == "unbatched" else (first, count)
            for name, state, width in (("h0", h0, call.output_size), ("c0", c0, call.hidden_size)):
                if state is None and name == "c0" and not call.cell.has_c:
                    continue
                if reason := _unfit(name, state, dtype, traced):
                    return reason
                if state.shape != (*lead, width):
                    return f"{name} of shape {tuple(state.shape)}"
        if extra:
            call.lengths, call.resets, call.threads = lengths, _flags(resets, traced), threads
            call.return_states = return_states is not False and check_return_states(call.cell, return_states)
        if self.training and self.dropout and self.num_layers > 1:
            seed = torch.randint(0, 2**63 - 1, (), dtype=torch.int64, device="cpu")
            call.seed = seed if traced else int(seed)
        if traced:
            for name in ("lengths", "resets"):
                if getattr(call, name) is not None:
                    setattr(call, name, torch.as_tensor(getattr(call, name)))
            results = self._run_traced(call, x, h0, c0, tensors)
        else:
            results = self._run(call, x, h0, c0, tensors)
            if isinstance(results, str):
                return results
        output: Any
        output, h_n, *more = results
        if sizes is not None:
            output = PackedSequence(output, sizes, input.sorted_indices, input.unsorted_indices)
        if not call.cell.has_c:
            return output, h_n
        if not call.return_states:
            return output, (h_n, more[0])
        c: Any = more[1]
        if sizes is not None:
            c = PackedSequence(c, sizes, input.sorted_indices, input.unsorted_indices)
        return output, (h_n, more[0]), c


class LSTM(_Layers, torch.nn.LSTM):
    """torch.nn.LSTM on hotloop's kernels: the same constructor, parameters, results and errors.

    A call of dense float32 or float64 tensors on the CPU runs on the kernels, forward and backward. Any other is run by
    torch.nn.LSTM itself. `forward` says what the kernels add: `lengths`, `resets`, `return_states` and `threads`.

    Parameters
    ----------
    input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, proj_size, device, dtype
        As in torch.nn.LSTM. Dropout draws its seed from torch's
        generator, so torch.manual_seed decides what is dropped; but it is not what torch.nn.LSTM would drop.

    Raises
    ------
    TypeError, ValueError
        torch's.

    Examples
    --------
    >>> import torch, hotloop.torch
    >>> layer = hotloop.torch.LSTM(40, 32, num_layers=2, bidirectional=True)
    >>> layer
    LSTM(40, 32, num_layers=2, bidirectional=True)
    >>> x = torch.ones(100, 3, 40, requires_grad=True)  # (seq_len, batch_size, input_size)
    >>> output, (h_n, c_n) = layer(x)
    >>> output.shape, h_n.shape
    (torch.Size([100, 3, 64]), torch.Size([4, 3, 32]))
    >>> output.sum().backward()
    >>> layer.weight_hh_l1_reverse.grad.shape
    torch.Size([128, 32])
    >>> output, (h_n, c_n), c = layer(x, lengths=[100, 7, 0], return_states=True)
    >>> bool((output[7:, 1] == 0).all()), c.shape
    (True, torch.Size([100, 3, 64]))
    """

    _torch = torch.nn.LSTM


class GRU(_Layers, torch.nn.GRU):
    """torch.nn.GRU on hotloop's kernels: the same constructor, parameters, results and errors. As `LSTM`.

    Examples
    --------
    >>> import torch, hotloop.torch
    >>> layer = hotloop.torch.GRU(8, 16, batch_first=True)
    >>> sequences = [torch.ones(5, 8), torch.ones(3, 8), torch.ones(7, 8)]
    >>> packed = torch.nn.utils.rnn.pack_sequence(sequences, enforce_sorted=False)
    >>> output, h_n = layer(packed)
    >>> type(output).__name__, output.data.shape, h_n.shape
    ('PackedSequence', torch.Size([15, 16]), torch.Size([1, 3, 16]))
    """

    _torch = torch.nn.GRU


class RNN(_Layers, torch.nn.RNN):
    """torch.nn.RNN on hotloop's kernels: the same constructor, parameters, results and errors. As `LSTM`.

    Examples
    --------
    >>> import torch, hotloop.torch
    >>> layer = hotloop.torch.RNN(8, 16, nonlinearity="relu")
    >>> resets = torch.zeros(5, 3, dtype=torch.bool)
    >>> resets[2, 1] = True  # there an episode begins
    >>> x = torch.ones(5, 3, 8)
    >>> output, h_n = layer(x, resets=resets)
    >>> torch.equal(output[2, 1], output[0, 1])
    True
    """

    _torch = torch.nn.RNN


class _Cells(_Recurrent):
    """RNNCell, LSTMCell and GRUCell: one step."""

    if TYPE_CHECKING:
        input_size: int
        hidden_size: int
        bias: bool
        nonlinearity: str

    def _cell(self) -> Cell | None:
        raise NotImplementedError

    def _own(self) -> list[Any] | None:
        names, parameters = _NAMES[bool(self.bias)], self._parameters
        try:
            return [parameters[name] for name in names]
        except KeyError:
            return None

    def _others(self) -> list[Any]:
        return [getattr(self, name) for name in _NAMES[bool(self.bias)]]

    def _call(self, layout: str) -> Call:
        cell = self._cell()
        assert cell is not None
        return Call(cell, 1, 1, self.hidden_size, self.bias, "step")

    def _expected(self) -> list[tuple[int, ...]]:
        return [shape for _, shape in of_weights(self._call("step"), self.input_size)]

    def forward(self, input: Any, hx: Any = None, *, threads: int | None = None) -> Any:
        """Run one step.

        Parameters
        ----------
        input : Tensor (batch_size, input_size), or (input_size,)
        hx : Tensor or (Tensor, Tensor), optional
            h, for an LSTM (h, c), each (batch_size, hidden_size), or (hidden_size,); zero by default.
        threads : int, optional
            At most this many threads.

        Returns
        -------
        Tensor or (Tensor, Tensor)
            h, for an LSTM (h, c), after the step.

        Raises
        ------
        TypeError, ValueError
            `threads` is wrong, or given where torch has to run the call; otherwise the errors are torch's.
        """
        if type(input) is Tensor and threads is None and not _traced() and _elsewhere() is None:
            kept: Kept | None = self.__dict__.get("_hotloop")
            if (
                kept is not None
                and kept.nbytes >= _READ_ONCE
                and not torch.is_grad_enabled()
                and input.shape[:-1] == (1,)
            ):
                return self._theirs(input, hx)
            results = self._prepared_call("step", input, hx)
            if results is not None:
                return (results[0], results[2]) if len(results) == 3 else results[0]
        reason = _elsewhere()
        if reason is None:
            results = self._one(input, hx, threads)
            if not isinstance(results, str):
                return results
            reason = results
        if threads is not None:
            raise TypeError(
                "threads: expected a call that hotloop runs (dense tensors of float32 or float64 on the CPU, of the "
                f"shapes that torch documents), got {reason}"
            )
        return self._theirs(input, hx)

    def _theirs(self, input: Any, hx: Any) -> Any:
        """Torch's cell. Without a batch, it takes an LSTM's states with one for right, and crashes."""
        if isinstance(self, torch.nn.LSTMCell) and isinstance(input, Tensor) and input.dim() == 1:
            for name, state in zip(("h", "c"), hx if isinstance(hx, (tuple, list, Tensor)) else (), strict=False):
                if isinstance(state, Tensor) and state.dim() == 2:
                    raise RuntimeError(
                        f"LSTMCell: expected {name} of shape ({self.hidden_size},), since input has 1 dimension, got "
                        f"{tuple(state.shape)}"
                    )
        self._check_weights(PARAMETERS)
        return super().forward(input, hx)

    def _one(self, x: Any, hx: Any, threads: Any) -> Any:
        traced, cell = _traced(), self._cell()
        if not isinstance(x, Tensor):
            return f"input of type {type(x).__name__}"
        tensors = self._own() or self._others()
        if cell is None or not isinstance(tensors[0], Tensor):
            return "a cell of another kind"
        dtype = tensors[0].dtype
        if reason := _unfit("input", x, dtype, traced):
            return reason
        if traced and (reason := self._unfit_traced(tensors)):
            return reason
        shape = x.shape
        if len(shape) not in (1, 2) or shape[-1] != self.input_size or (not traced and not x.numel()):
            return f"input of shape {tuple(shape)}"
        h0: Any = None
        c0: Any = None
        if hx is not None:
            if cell.has_c:
                if not isinstance(hx, (tuple, list)) or len(hx) != 2:
                    return "hx that is not (h, c)"
                h0, c0 = hx
            else:
                h0 = hx
            for name, state in (("h", h0), ("c", c0))[: 1 + cell.has_c]:
                if reason := _unfit(name, state, dtype, traced):
                    return reason
                if state.shape != (*shape[:-1], self.hidden_size):
                    return f"{name} of shape {tuple(state.shape)}"
        if (
            self._trained_by_torch and threads is None and not traced and torch.is_grad_enabled()
            and any(tensor is not None and tensor.requires_grad for tensor in (x, h0, *tensors))
        ):  # fmt: skip
            return "a step that is differentiated"
        call = self._call("step")
        call.threads = threads
        single = len(shape) == 1
        if single:
            x, h0, c0 = (None if tensor is None else tensor.unsqueeze(0) for tensor in (x, h0, c0))
        results = self._run_traced(call, x, h0, c0, tensors) if traced else self._run(call, x, h0, c0, tensors)
        if isinstance(results, str):
            return results
        h, _, *more = results
        if single:
            h, more = h.squeeze(0), [c.squeeze(0) for c in more]
        return (h, more[0]) if cell.has_c else h


class RNNCell(_Cells, torch.nn.RNNCell):
    """torch.nn.RNNCell on hotloop's kernels: the same constructor, parameters, results and errors. As `LSTMCell`.

    Examples
    --------
    >>> import torch, hotloop.torch
    >>> cell = hotloop.torch.RNNCell(8, 16)
    >>> cell(torch.ones(3, 8)).shape
    torch.Size([3, 16])
    """

    _torch = torch.nn.RNNCell
    # Torch's four operations, forward and backward, take 0.65 (H128 B1) to 0.9 (H32 B32) of the time of one of ours.
    _trained_by_torch = True

    def _cell(self) -> Cell | None:
        return CELLS.get(f"rnn_{self.nonlinearity}")


class LSTMCell(_Cells, torch.nn.LSTMCell):
    """torch.nn.LSTMCell on hotloop's kernels: the same constructor, parameters, results and errors.

    What is torch's to run is the same as for `LSTM`.

    Parameters
    ----------
    input_size, hidden_size, bias, device, dtype
        As in torch.nn.LSTMCell.

    Raises
    ------
    TypeError, ValueError
        torch's.

    Examples
    --------
    >>> import torch, hotloop.torch
    >>> cell = hotloop.torch.LSTMCell(8, 16)
    >>> h, c = cell(torch.ones(3, 8))
    >>> h, c = cell(torch.ones(3, 8), (h, c))
    >>> h.shape, c.shape
    (torch.Size([3, 16]), torch.Size([3, 16]))
    """

    _torch = torch.nn.LSTMCell

    def _cell(self) -> Cell | None:
        return CELLS["lstm"]


class GRUCell(_Cells, torch.nn.GRUCell):
    """torch.nn.GRUCell on hotloop's kernels: the same constructor, parameters, results and errors. As `LSTMCell`.

    Examples
    --------
    >>> import torch, hotloop.torch
    >>> cell = hotloop.torch.GRUCell(8, 16, dtype=torch.float64)
    >>> cell(torch.ones(8, dtype=torch.float64)).shape
    torch.Size([16])
    """

    _torch = torch.nn.GRUCell

    def _cell(self) -> Cell | None:
        return CELLS["gru"]


for _class in (RNN, LSTM, GRU, RNNCell, LSTMCell, GRUCell):
    _class.__module__ = "hotloop.torch"  # where pickles look for it
