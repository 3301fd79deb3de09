"""RNN, LSTM and GRU layers: several layers, both directions, dropout between layers, weights packed once.

Names, defaults, shapes and parameter names are those of torch.nn.
"""

from __future__ import annotations

import operator
import threading
import warnings
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, NamedTuple, TypeVar, overload

import numpy as np
import numpy.typing as npt

from ._core import call
from ._core.arrays import as_array
from ._core.checks import (
    check_dtype,
    check_flag,
    check_generator,
    check_integer,
    check_probability,
    check_weights,
    check_wrt,
    gru_cell,
    rnn_cell,
)
from ._core.dropout import drop
from ._core.parameters import NO_PROJECTION, check_mapping, frozen, read_state_dict
from ._core.types import CELLS, LSTM_PROJECTED, Array, Cell, Options, Ragged

if TYPE_CHECKING:
    from typing_extensions import Unpack

    class InferenceOptions(Options, total=False):
        """Those of a call."""

        out: Any

    class TrainingOptions(Options, total=False):
        """Those of `vjp`."""

        seed: int | None


Self = TypeVar("Self", bound="_Layers[Any]")
State = TypeVar("State")  # h_n, for an LSTM (h_n, c_n)


class _LayerGradients(NamedTuple):
    x: Array | None
    state: Any  # of h0, or (h0, c0) for an LSTM
    parameters: dict[str, Array]  # by the names of state_dict()


class LayerGradients(_LayerGradients):
    """Gradients of a call of a layer; None where they are not in `wrt`."""

    rows: Ragged | None = None  # how the rows of the call lay, which `accumulate_into` goes by


def _described(state: Any) -> str:
    if isinstance(state, (tuple, list)):
        return f"a {type(state).__name__} of {len(state)}"
    return f"{type(state).__name__}" + (f" of shape {state.shape}" if hasattr(state, "shape") else "")


class _Layers(Generic[State]):
    """What RNN, LSTM and GRU share."""

    _gates: ClassVar[int]

    def __init__(
        self,
        cell: Cell,
        input_size: int,
        hidden_size: int,
        num_layers: int,
        bias: bool,
        batch_first: bool,
        dropout: float,
        bidirectional: bool,
        dtype: npt.DTypeLike,
        rng: Any,
        proj_size: int = 0,
    ) -> None:
        self._cell = cell
        self._input_size = check_integer("input_size", input_size, 1)
        self._hidden_size = check_integer("hidden_size", hidden_size, 1)
        self._proj_size = check_integer("proj_size", proj_size, 0)
        if self._proj_size and not cell.projects:
            raise ValueError(f"{NO_PROJECTION}, got {proj_size}")
        if self._proj_size >= self._hidden_size:
            raise ValueError(f"proj_size has to be smaller than hidden_size, got {proj_size} and {hidden_size}")
        self._num_layers = check_integer("num_layers", num_layers, 1)
        self._bias = check_flag("bias", bias)
        self._batch_first = check_flag("batch_first", batch_first)
        self._dropout = check_probability("dropout", dropout)
        self._bidirectional = check_flag("bidirectional", bidirectional)
        self._dtype = check_dtype(dtype)
        self._rng = check_generator("rng", rng)
        if self._dropout and self._num_layers == 1:
            warnings.warn(
                f"dropout: drops between layers, so with num_layers=1 dropout={self._dropout} does nothing",
                UserWarning,
                stacklevel=3,
            )
        bound = self._hidden_size**-0.5
        self._lock = threading.Lock()
        self._use(
            {
                name: frozen(self._rng.uniform(-bound, bound, shape).astype(self._dtype))
                for name, shape in self._shapes().items()
            }
        )

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every parameter by name, in torch's order."""
        shapes: dict[str, tuple[int, ...]] = {}
        for layer in range(self._num_layers):
            columns = self._input_size if layer == 0 else self._output_size * self._directions
            for suffix in self._suffixes(layer):
                for parameter in self._cell.parameters:
                    if self._bias or parameter.operand is not None:
                        shapes[f"{parameter.name}{suffix}"] = parameter.shape(
                            self._cell, columns, self._hidden_size, self._output_size
                        )
        return shapes

    def _suffixes(self, layer: int) -> list[str]:
        return [f"_l{layer}", f"_l{layer}_reverse"][: self._directions]

    def _use(self, parameters: dict[str, Array]) -> None:
        weights = [
            [
                check_weights(self._cell, *(parameters.get(f"{name}{suffix}") for name in self._cell.names))
                for suffix in self._suffixes(layer)
            ]
            for layer in range(self._num_layers)
        ]
        # Replaced whole: a call or a `vjp` under way keeps the parameters it began with.
        self._parameters, self._stack = parameters, call.Stack(weights, stacked=True)

    @property
    def _directions(self) -> int:
        return 2 if self._bidirectional else 1

    @property
    def _output_size(self) -> int:
        return self._proj_size or self._hidden_size

    input_size = property(operator.attrgetter("_input_size"), doc="Features of `x`.")
    hidden_size = property(
        operator.attrgetter("_hidden_size"), doc="Features of h before a projection, in each direction."
    )
    proj_size = property(operator.attrgetter("_proj_size"), doc="Features of h behind a projection; 0: there is none.")
    num_layers = property(operator.attrgetter("_num_layers"), doc="Layers, each on the output of the one before.")
    bias = property(operator.attrgetter("_bias"), doc="Whether there are biases.")
    batch_first = property(operator.attrgetter("_batch_first"), doc="Whether sequences are (batch_size, seq_len, *).")
    dropout = property(operator.attrgetter("_dropout"), doc="The probability to drop an element between layers.")
    bidirectional = property(operator.attrgetter("_bidirectional"), doc="Whether there is a reverse direction.")
    dtype = property(operator.attrgetter("_dtype"), doc="float32 or float64.")

    def __repr__(self) -> str:
        parts = [str(self._input_size), str(self._hidden_size)]
        defaults = {
            "num_layers": 1, "nonlinearity": "tanh", "bias": True, "batch_first": False, "dropout": 0.0,
            "bidirectional": False, "proj_size": 0, "reset_after": True,
        }  # fmt: skip
        options = {name: getattr(self, name) for name in defaults if hasattr(self, name)}
        parts += [f"{name}={value!r}" for name, value in options.items() if defaults.get(name) != value]
        return f"{type(self).__name__}({', '.join(parts)}, dtype={self._dtype})"

    def __getstate__(self) -> dict[str, Any]:
        """Everything but what was packed for this machine."""
        state = vars(self) | {"_cell": self._cell.name}
        del state["_stack"], state["_lock"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        state = (
            {"_proj_size": 0}
            | state
            | {
                "_cell": CELLS[state["_cell"]],
                "_dtype": check_dtype(state["_dtype"]),
                "_lock": threading.Lock(),
            }
        )
        parameters = state.pop("_parameters")
        vars(self).update(state)
        self._use({name: frozen(array) for name, array in parameters.items()})

    @classmethod
    def _from_state_dict(cls: type[Self], mapping: Mapping[str, Any], prefix: str, **options: Any) -> Self:
        """The layer whose shape the mapping's names and arrays tell."""
        found, shape = read_state_dict(mapping, prefix, cls._gates)
        layer = cls(**shape, **options)
        layer.load_state_dict(found)
        return layer

    def state_dict(self) -> dict[str, Array]:
        """Return the parameters by torch's names.

        Returns
        -------
        dict of str to array
            weight_ih_l0, weight_hh_l0, bias_ih_l0, bias_hh_l0, weight_ih_l0_reverse, ..., weight_ih_l1, ..., as
            read-only views. `update` and `load_state_dict` replace the arrays, so these keep the values they have.
        """
        return {name: array.view() for name, array in self._parameters.items()}

    def load_state_dict(self, mapping: Mapping[str, Any]) -> None:
        """Replace all parameters.

        Parameters
        ----------
        mapping : mapping of str to array
            As from `state_dict()`, of this layer or of torch's; float32 and float64 are cast to the layer's dtype.

        Raises
        ------
        ValueError
            A name is missing or unknown, or a shape does not fit. Then nothing is replaced.
        TypeError
            An array of another dtype.
        """
        check_mapping(mapping)
        if missing := [name for name in self._shapes() if name not in mapping]:
            raise ValueError(f"mapping: expected every parameter of {self}, missing {missing}")
        self.update(mapping)

    def update(self, mapping: Mapping[str, Any]) -> None:
        """Replace some parameters, as after an optimizer's step; the others stay.

        Weights are packed anew at the next inference call. A `vjp` made before still differentiates at the parameters
        it was made with.

        Parameters
        ----------
        mapping : mapping of str to array
            New values by the names of `state_dict()`. They are copied.

        Raises
        ------
        TypeError, ValueError
            As `load_state_dict`, but none need be there.
        """
        check_mapping(mapping)
        shapes = self._shapes()
        if unknown := [name for name in mapping if name not in shapes]:
            raise ValueError(f"mapping: expected names among {list(shapes)}, got {unknown}")
        replaced = {}
        for name, value in mapping.items():
            array = as_array(name, value)
            if array.shape != shapes[name]:
                raise ValueError(f"{name}: expected shape {shapes[name]}, got {array.shape}")
            replaced[name] = frozen(array.astype(self._dtype, copy=False))
        with self._lock:  # of two updates at once none is lost
            self._use({name: replaced.get(name, array) for name, array in self._parameters.items()})

    def _states(self, state: Any) -> tuple[Any, Any]:
        """h0 and c0 of `state`."""
        if state is None:
            return None, None
        if self._cell.has_c:
            if not isinstance(state, (tuple, list)) or len(state) != 2:
                raise TypeError(f"state: expected (h0, c0), got {_described(state)}")
            h0, c0 = state
            return h0, c0
        if isinstance(state, tuple) or (isinstance(state, list) and any(hasattr(part, "shape") for part in state)):
            raise TypeError(f"state: expected h0, an array, got {_described(state)}")
        return state, None

    @overload
    def __call__(
        self, x: Any, state: Any = None, *, return_states: Literal[False] = False, **options: Unpack[InferenceOptions]
    ) -> tuple[Array, State]: ...
    @overload
    def __call__(
        self, x: Any, state: Any = None, *, return_states: Literal[True], **options: Unpack[InferenceOptions]
    ) -> tuple[Array, State, Array]: ...
    def __call__(
        self,
        x: Any,
        state: Any = None,
        *,
        lengths: Any = None,
        offsets: Any = None,
        resets: Any = None,
        reset_state: str = "zeros",
        recurrent_mask: Any = None,
        return_states: bool = False,
        threads: int | None = None,
        out: Any = None,
    ) -> tuple[Array, State] | tuple[Array, State, Array]:
        """Run all layers over whole sequences, for inference: nothing is dropped, weights are packed once.

        Parameters
        ----------
        x : array (seq_len, batch_size, input_size)
            (batch_size, seq_len, input_size) with `batch_first`, (seq_len, input_size) for one unbatched sequence.
        state : array or (array, array), optional
            h0, for an LSTM (h0, c0), each (num_layers*num_directions, batch_size, hidden_size), h0 with a projection
            (..., proj_size); zero by default; without batch_size if `x` is unbatched. Layers are outermost, forward
            before reverse.
        lengths, offsets
            Sequences of several lengths, padded or, with ``offsets=np.append(0, lengths.cumsum())``, one behind the
            other, as in `hotloop.lstm`: then `x` is (total, input_size), `output` (total, num_directions*hidden_size),
            and the batch size of states is len(offsets) - 1. The reverse direction starts at each sequence's own end.
        resets : array (seq_len, batch_size) of bool, optional
            True at the first step of an episode in time, in the layout of `x` as in `hotloop.lstm`. No direction
            carries a state from one episode into another: the reverse direction is reset before it runs on the last
            step of the episode before, so what stands at a sequence's first step says nothing to it.
        reset_state : {"zeros", "initial"}
            What each layer and direction begins an episode with: zeros, or its own part of `state`.
        recurrent_mask : array, optional
            Of the shape of h0: multiplies h in the products of each layer and direction, as in `hotloop.lstm`.
        return_states : bool
            Also return c of every step of the last layer; LSTM only.
        threads : int, optional
            At most this many threads. The directions of a layer run side by side. The result does not depend on it.
        out : array, optional
            Where `output` is written, as in `hotloop.lstm`.

        Returns
        -------
        output : array (seq_len, batch_size, num_directions*hidden_size)
            h of the last layer at every step, both directions side by side, in the layout of `x`.
        state : array or (array, array)
            h_n, for an LSTM (h_n, c_n), in the shape of `state`.
        c : array (seq_len, batch_size, num_directions*hidden_size)
            Like `output`; only with `return_states`.

        Raises
        ------
        TypeError, ValueError
            As `hotloop.lstm`.

        Examples
        --------
        >>> import numpy as np, hotloop
        >>> layer = hotloop.LSTM(40, 32, bidirectional=True, rng=0)
        >>> x, lengths = np.ones((100, 3, 40), np.float32), [100, 0, 7]
        >>> output, (h_n, c_n), c = layer(x, lengths=lengths, return_states=True)
        >>> bool((h_n[1] == output[0, :, 32:]).all()), bool((c[7:, 2] == 0).all()), c.shape
        (True, True, (100, 3, 64))
        """
        if type(state) is tuple and len(state) == 2 and self._cell.has_c:
            h0, c0 = state
        else:
            h0, c0 = self._states(state)
        # `out` cannot lie where the parameters do: nobody can write there.
        output, h_n, c_n, c, _ = call.run(
            self._stack, x, h0, c0, self._batch_first, lengths, offsets, resets, reset_state, return_states, threads,
            out, False, None, (), recurrent_mask,
        )  # fmt: skip
        end: Any = h_n if c_n is None else (h_n, c_n)
        return (output, end) if c is None else (output, end, c)

    @overload
    def vjp(
        self, x: Any, state: Any = None, *, return_states: Literal[False] = False, **options: Unpack[TrainingOptions]
    ) -> tuple[tuple[Array, State], Callable[..., LayerGradients]]: ...
    @overload
    def vjp(
        self, x: Any, state: Any = None, *, return_states: Literal[True], **options: Unpack[TrainingOptions]
    ) -> tuple[tuple[Array, State, Array], Callable[..., LayerGradients]]: ...
    def vjp(
        self,
        x: Any,
        state: Any = None,
        *,
        seed: int | None = None,
        lengths: Any = None,
        offsets: Any = None,
        resets: Any = None,
        reset_state: str = "zeros",
        recurrent_mask: Any = None,
        return_states: bool = False,
        threads: int | None = None,
    ) -> tuple[tuple[Array, State] | tuple[Array, State, Array], Callable[..., LayerGradients]]:
        """Run all layers for training, and return what backpropagation through time needs.

        Parameters
        ----------
        x, state, lengths, offsets, resets, reset_state, recurrent_mask, return_states, threads
            As in a call.
        seed : int, optional
            Decides which elements are dropped between layers: the same seed drops the same, whatever `batch_first` and
            the number of threads; but not from sequences in an array of another shape, as with other padding or with
            `offsets`. By default a new one is drawn from the layer's `rng`. Masks are made again in the
            backward pass, not kept.

        Returns
        -------
        (output, state)
            As from a call, but with dropout; (output, state, c) with `return_states`. `output` and `c` are read-only,
            because `vjp` reads them.
        vjp : callable
            ``vjp(grad_output=None, grad_h_n=None, grad_c_n=None, *, wrt=None, accumulate_into=None) ->
            LayerGradients`` (grad_c_n: LSTM only; with `return_states` there is `grad_c` after it; `x` is not copied:
            do not change it before the last call): a named tuple of the gradients of x, of state (h0, or (h0, c0)),
            and of the parameters, a dict by the names of `state_dict()`. Upstream gradients have the shapes of the
            results; absent ones count as zero. `wrt`, an iterable of "x", "state" and names of parameters, skips what
            it does not name. It may be called any number of times. `accumulate_into`, the result of another call, has
            the gradients of parameters added to it in place, as in `hotloop.lstm_vjp`.

        Raises
        ------
        TypeError, ValueError
            As a call.
        """
        if seed is not None:
            seed = check_integer("seed", seed, 0)
        if not self._dropout or self._num_layers == 1:
            seed = None
        elif seed is None:
            seed = int(self._rng.integers(2**63))
        h0, c0 = self._states(state)
        output, h_n, c_n, c, saved = call.run(
            self._stack, x, h0, c0, self._batch_first, lengths, offsets, resets, reset_state, return_states, threads,
            None, True, None if seed is None else partial(drop, self._dropout, seed), (),
            recurrent_mask,
        )  # fmt: skip
        assert saved is not None
        output.flags.writeable = False
        if c is not None:
            c.flags.writeable = False
        names = tuple(self._parameters)

        def run(upstream: call.Upstream, wrt: Iterable[str] | None, accumulate_into: Any) -> LayerGradients:
            return self._backward(saved, upstream, names, check_wrt(wrt, ("x", "state", *names)), accumulate_into)

        end: Any = h_n if c_n is None else (h_n, c_n)
        results = (output, end) if c is None else (output, end, c)
        return results, call.make_vjp(run, self._cell.has_c, c is not None)

    def _backward(
        self, saved: call.Saved, upstream: call.Upstream, names: tuple[str, ...], wanted: frozenset[str],
        accumulate_into: Any,
    ) -> LayerGradients:  # fmt: skip
        into = None
        if accumulate_into is not None:
            if not isinstance(accumulate_into, LayerGradients):
                raise TypeError(
                    "accumulate_into: expected the LayerGradients of an earlier call, got "
                    f"{type(accumulate_into).__name__}"
                )
            given = accumulate_into.parameters
            into = call.Into(
                [
                    [
                        {name: given.get(f"{name}{suffix}") for name in self._cell.names}
                        for suffix in self._suffixes(layer)
                    ]
                    for layer in range(self._num_layers)
                ],
                accumulate_into.rows,
            )
        grads = call.backward(
            saved, upstream, "x" in wanted, "state" in wanted,
            [
                [[name for name in self._cell.names if f"{name}{suffix}" in wanted] for suffix in self._suffixes(layer)]
                for layer in range(self._num_layers)
            ],
            into,
        )  # fmt: skip
        parameters = {
            f"{name}{suffix}": gradient
            for layer, of_layer in enumerate(grads.parameters)
            for suffix, of_direction in zip(self._suffixes(layer), of_layer, strict=True)
            for name, gradient in of_direction.items()
        }
        state = (grads.h0, grads.c0) if grads.c0 is not None else grads.h0
        found = LayerGradients(grads.x, state, {name: parameters[name] for name in names if name in wanted})
        if grads.rows is not None:
            found.rows = grads.rows
        return found


class RNN(_Layers[Array]):
    """Vanilla RNN layers: torch.nn.RNN's arguments, shapes and parameters. The equation is that of `hotloop.rnn`.

    Parameters
    ----------
    input_size, hidden_size : int
        Features of x and of h.
    num_layers : int
        Each layer runs on the output of the one before.
    nonlinearity : {"tanh", "relu"}
    bias : bool
        Whether there are bias_ih and bias_hh.
    batch_first : bool
        Whether sequences are (batch_size, seq_len, features) and not (seq_len, batch_size, features).
    dropout : float
        The probability to drop an element of the output of every layer but the last, in `vjp` only.
    bidirectional : bool
        Whether each layer has a second direction, from the last step to the first.
    proj_size : int
        0: only an LSTM has projections.
    dtype : float32 or float64
        Of the parameters and of every array of a call.
    rng : int or numpy.random.Generator, optional
        Draws the parameters, uniform in +-1/sqrt(hidden_size), and the seeds of dropout.

    Raises
    ------
    TypeError, ValueError
        An argument of a wrong type, or out of its range.

    Examples
    --------
    >>> import numpy as np, hotloop
    >>> layer = hotloop.RNN(40, 32, num_layers=2, nonlinearity="relu", rng=0)
    >>> output, h_n = layer(np.ones((100, 8, 40), np.float32))
    >>> output.shape, h_n.shape
    ((100, 8, 32), (2, 8, 32))
    """

    _gates = 1

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        proj_size: int = 0,
        dtype: npt.DTypeLike = np.float32,
        rng: Any = None,
    ) -> None:
        cell = rnn_cell(nonlinearity)
        super().__init__(
            cell, input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, dtype, rng, proj_size
        )

    @property
    def nonlinearity(self) -> str:
        """What h is made with: "tanh" or "relu"."""
        return self._cell.name.removeprefix("rnn_")

    @classmethod
    def from_state_dict(
        cls,
        mapping: Mapping[str, Any],
        prefix: str = "",
        *,
        nonlinearity: str = "tanh",
        batch_first: bool = False,
        dropout: float = 0.0,
        rng: Any = None,
    ) -> RNN:
        """Make the layers that `mapping`, a state_dict of this class or of torch.nn.RNN, holds.

        As `LSTM.from_state_dict`; the nonlinearity is not in it.

        Examples
        --------
        >>> import hotloop
        >>> hotloop.RNN.from_state_dict(hotloop.RNN(40, 32, num_layers=2).state_dict())
        RNN(40, 32, num_layers=2, dtype=float32)
        """
        return cls._from_state_dict(
            mapping, prefix, nonlinearity=nonlinearity, batch_first=batch_first, dropout=dropout, rng=rng
        )


class LSTM(_Layers[tuple[Array, Array]]):
    """LSTM layers: torch.nn.LSTM's arguments, shapes and parameters. The equations are those of `hotloop.lstm`.

    Parameters
    ----------
    input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, dtype, rng
        As in `RNN`.
    proj_size : int
        Where it is not 0, weight_hr projects h to so many features: those of `output`, `h_n` and h0, in each direction.
        It is smaller than hidden_size, which stays the size of c.

    Raises
    ------
    TypeError, ValueError
        An argument of a wrong type, or out of its range.

    Examples
    --------
    >>> import numpy as np, hotloop
    >>> layer = hotloop.LSTM(40, 32, num_layers=2, dropout=0.2, bidirectional=True, rng=0)
    >>> layer
    LSTM(40, 32, num_layers=2, dropout=0.2, bidirectional=True, dtype=float32)
    >>> x = np.ones((100, 8, 40), np.float32)
    >>> output, (h_n, c_n) = layer(x)
    >>> output.shape, h_n.shape
    ((100, 8, 64), (4, 8, 32))
    >>> (output, state), vjp = layer.vjp(x, seed=1)
    >>> grads = vjp(grad_output=np.ones_like(output))
    >>> grads.parameters["weight_hh_l1_reverse"].shape
    (128, 32)
    >>> layer.update({name: p - 0.1 * grads.parameters[name] for name, p in layer.state_dict().items()})

    With a projection:

    >>> layer = hotloop.LSTM(40, 32, proj_size=8)
    >>> output, (h_n, c_n) = layer(x)
    >>> output.shape, h_n.shape, c_n.shape, layer.state_dict()["weight_hr_l0"].shape
    ((100, 8, 8), (1, 8, 8), (1, 8, 32), (8, 32))
    """

    _gates = 4

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        proj_size: int = 0,
        dtype: npt.DTypeLike = np.float32,
        rng: Any = None,
    ) -> None:
        cell = LSTM_PROJECTED if proj_size else CELLS["lstm"]
        super().__init__(
            cell, input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, dtype, rng, proj_size
        )

    @classmethod
    def from_state_dict(
        cls,
        mapping: Mapping[str, Any],
        prefix: str = "",
        *,
        batch_first: bool = False,
        dropout: float = 0.0,
        rng: Any = None,
    ) -> LSTM:
        """Make the layers that `mapping`, a state_dict of this class or of torch.nn.LSTM, holds.

        Parameters
        ----------
        mapping : mapping of str to array
            Sizes, the number of layers, directions, biases and the dtype are taken from its names and arrays.
        prefix : str
            Only names that start with it are looked at, without it: "encoder." for encoder.weight_ih_l0.
        batch_first, dropout, rng
            As in the constructor; they are not in a state_dict.

        Raises
        ------
        ValueError
            A name or a shape that does not belong to such layers, or one that is missing.
        TypeError
            Arrays that are not float32 or float64.

        Examples
        --------
        >>> import hotloop
        >>> parameters = hotloop.LSTM(40, 32, bidirectional=True).state_dict()
        >>> model = {f"encoder.{name}": array for name, array in parameters.items()} | {"scale": 1.0}
        >>> hotloop.LSTM.from_state_dict(model, "encoder.")
        LSTM(40, 32, bidirectional=True, dtype=float32)
        """
        return cls._from_state_dict(mapping, prefix, batch_first=batch_first, dropout=dropout, rng=rng)


class GRU(_Layers[Array]):
    """GRU layers: torch.nn.GRU's arguments, shapes and parameters. The equations are those of `hotloop.gru`.

    Parameters
    ----------
    input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, proj_size, dtype, rng
        As in `RNN`.
    reset_after : bool
        As in `hotloop.gru`: True is torch's form.

    Raises
    ------
    TypeError, ValueError
        An argument of a wrong type, or out of its range.

    Examples
    --------
    >>> import numpy as np, hotloop
    >>> layer = hotloop.GRU(40, 32, batch_first=True, dtype=np.float64, rng=0)
    >>> output, h_n = layer(np.ones((8, 100, 40)))
    >>> output.shape, h_n.shape
    ((8, 100, 32), (1, 8, 32))
    """

    _gates = 3

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        reset_after: bool = True,
        proj_size: int = 0,
        dtype: npt.DTypeLike = np.float32,
        rng: Any = None,
    ) -> None:
        cell = gru_cell(reset_after)
        super().__init__(
            cell, input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, dtype, rng, proj_size
        )

    @property
    def reset_after(self) -> bool:
        """Whether r multiplies the product (torch) or h before it."""
        return self._cell.name == "gru"

    @classmethod
    def from_state_dict(
        cls,
        mapping: Mapping[str, Any],
        prefix: str = "",
        *,
        reset_after: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        rng: Any = None,
    ) -> GRU:
        """Make the layers that `mapping`, a state_dict of this class or of torch.nn.GRU, holds.

        As `LSTM.from_state_dict`. The form of the reset is not in it: without `reset_after=False` parameters of such
        a GRU compute something else.

        Examples
        --------
        >>> import hotloop
        >>> hotloop.GRU.from_state_dict(hotloop.GRU(40, 32).state_dict(), batch_first=True)
        GRU(40, 32, batch_first=True, dtype=float32)
        """
        return cls._from_state_dict(
            mapping, prefix, reset_after=reset_after, batch_first=batch_first, dropout=dropout, rng=rng
        )
