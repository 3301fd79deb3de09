"""Whole sequences as functions: rnn, lstm, gru for inference; rnn_vjp, lstm_vjp, gru_vjp for training.

Names, defaults, gate order and shapes are those of torch.nn.RNN, LSTM and GRU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np

from ._core import call
from ._core.checks import check_flag, check_weights, check_wrt, gru_cell, rnn_cell
from ._core.types import LSTM, LSTM_PROJECTED, Array, Cell, Gradients, LSTMGradients, Options

if TYPE_CHECKING:
    from typing_extensions import Unpack

    class SequenceOptions(Options, total=False):
        """Those of one recurrence."""

        batch_first: bool
        reverse: bool

    class InferenceOptions(SequenceOptions, total=False):
        """Those of inference."""

        out: Any


States = tuple[Array, Array]  # h and c


def _lstm_weights(
    weight_ih: Any, weight_hh: Any, bias_ih: Any, bias_hh: Any, weight_hr: Any
) -> tuple[Cell, tuple[Any, ...]]:
    """The cell, and its parameters in order."""
    weights = weight_ih, weight_hh, bias_ih, bias_hh
    return (LSTM, weights) if weight_hr is None else (LSTM_PROJECTED, (*weights, weight_hr))


def _run(
    cell: Cell, weights: tuple[Any, ...], x: Any, h0: Any, c0: Any, *, training: bool, batch_first: Any,
    reverse: Any, lengths: Any, offsets: Any, resets: Any, reset_state: Any, return_states: Any, threads: Any,
    out: Any = None, recurrent_mask: Any = None,
) -> call.Results:  # fmt: skip
    checked = check_weights(cell, *weights)
    stack = call.Stack([[checked]], stacked=False, reverse=check_flag("reverse", reverse))
    return call.run(
        stack, x, h0, c0, batch_first, lengths, offsets, resets, reset_state, return_states, threads, out, training,
        None, weights, recurrent_mask,
    )  # fmt: skip


def _vjp(output: Array, c: Array | None, saved: call.Saved | None) -> Callable[..., Any]:
    """The backward function of a finished training forward; may be called any number of times."""
    assert saved is not None
    # Backward reads them: a write in between would silently give wrong gradients.
    output.flags.writeable = False
    if c is not None:
        c.flags.writeable = False
    kind = LSTMGradients if saved.stack.cell.has_c else Gradients

    def run(upstream: call.Upstream, wrt: Iterable[str] | None, accumulate_into: Any) -> Any:
        wanted = check_wrt(wrt, kind._fields)
        of_cell = saved.stack.cell.names
        names = [name for name in of_cell if name in wanted]
        into = None
        if accumulate_into is not None:
            if not isinstance(accumulate_into, kind):
                raise TypeError(
                    f"accumulate_into: expected the {kind.__name__} of an earlier call, got "
                    f"{type(accumulate_into).__name__}"
                )
            into = call.Into([[{name: getattr(accumulate_into, name) for name in of_cell}]], accumulate_into.rows)
        grads = call.backward(saved, upstream, "x" in wanted, "h0" in wanted or "c0" in wanted, [[names]], into)
        parameters = grads.parameters[0][0]
        given = {
            "x": grads.x,
            **{name: parameters.get(name) for name in of_cell},
            "h0": grads.h0 if "h0" in wanted else None,
        }
        found = (
            Gradients(**given) if kind is Gradients else LSTMGradients(**given, c0=grads.c0 if "c0" in wanted else None)
        )
        if grads.rows is not None:
            found.rows = grads.rows
        return found

    return call.make_vjp(run, saved.stack.cell.has_c, c is not None)


@overload
def lstm(
    x: Any, weight_ih: Any, weight_hh: Any, bias_ih: Any = None, bias_hh: Any = None, h0: Any = None, c0: Any = None,
    *, return_states: Literal[False] = False, weight_hr: Any = None, **options: Unpack[InferenceOptions],
) -> tuple[Array, States]: ...  # fmt: skip
@overload
def lstm(
    x: Any, weight_ih: Any, weight_hh: Any, bias_ih: Any = None, bias_hh: Any = None, h0: Any = None, c0: Any = None,
    *, return_states: Literal[True], weight_hr: Any = None, **options: Unpack[InferenceOptions],
) -> tuple[Array, States, Array]: ...  # fmt: skip
def lstm(
    x: Any,
    weight_ih: Any,
    weight_hh: Any,
    bias_ih: Any = None,
    bias_hh: Any = None,
    h0: Any = None,
    c0: Any = None,
    *,
    weight_hr: Any = None,
    batch_first: bool = False,
    reverse: bool = False,
    lengths: Any = None,
    offsets: Any = None,
    resets: Any = None,
    reset_state: str = "zeros",
    recurrent_mask: Any = None,
    return_states: bool = False,
    threads: int | None = None,
    out: Any = None,
) -> tuple[Array, States] | tuple[Array, States, Array]:
    r"""Run an LSTM over whole sequences, for inference.

    .. code-block:: text

        i = sigmoid(x W_ii' + b_ii + h W_hi' + b_hi)        c' = f * c + i * g
        f = sigmoid(x W_if' + b_if + h W_hf' + b_hf)        h' = o * tanh(c')
        g =    tanh(x W_ig' + b_ig + h W_hg' + b_hg)
        o = sigmoid(x W_io' + b_io + h W_ho' + b_ho)

    The equations are those of torch.nn.LSTM: the LSTM with a forget gate of Gers, Schmidhuber and Cummins,
    "Learning to Forget" (2000), without peepholes. With `weight_hr`, h' = W_hr (o * tanh(c')): torch's `proj_size`, the
    recurrent projection of Sak, Senior and Beaufays, "Long Short-Term Memory Based Recurrent Neural Network
    Architectures" (2014).

    Parameters
    ----------
    x : array (seq_len, batch_size, input_size)
        (batch_size, seq_len, input_size) with `batch_first`, (seq_len, input_size) for one unbatched sequence.
        Any strides; only a feature stride other than 1 costs a copy.
    weight_ih : array (4*hidden_size, input_size)
        Rows in gate order i, f, g, o. Its dtype, float32 or float64, is that of the call.
    weight_hh : array (4*hidden_size, hidden_size)
    bias_ih, bias_hh : array (4*hidden_size,), optional
    h0, c0 : array (batch_size, hidden_size), optional
        Initial states, zero by default; (hidden_size,) if `x` is unbatched.
    weight_hr : array (proj_size, hidden_size), optional
        Projects h, whose size is then proj_size: that of `h0`, `h_n`, `output` and the columns of `weight_hh`. c keeps
        hidden_size.
    batch_first : bool
        The layout of `x` and of `output`; both are copy-free.
    reverse : bool
        Start at the last step. `output[t]` stays aligned with `x[t]`.
    lengths : array (batch_size,) of integers, optional
        How many steps each sequence has, 0 to seq_len, in any order; the rest of it is padding, which is never read and
        costs nothing. There `output` and the gradient of `x` are zero. `h_n` and `c_n` are the states after each
        sequence's own last step, with `reverse` each starts at its own end; a sequence of no steps keeps h0 and c0.
    offsets : array (batch_size + 1,) of integers, optional
        Instead of `lengths`: sequences without padding, one behind the other. `x` is (total, input_size), `output`
        (total, hidden_size), whatever `batch_first`; sequence b has the rows offsets[b] to offsets[b+1]. offsets[0] is
        0, offsets[-1] total. States are (batch_size, hidden_size).
    resets : array (seq_len, batch_size) of bool, optional
        Where True, the state is replaced before that step, in the order of processing; no gradient flows across. In
        the layout of `x`: (batch_size, seq_len) with `batch_first`, (seq_len,) unbatched, (total,) with `offsets`.
    reset_state : {"zeros", "initial"}
        What resets put in the place of the state: zeros, also instead of h0 and c0 at the first step; or h0 and c0,
        whose gradients are then sums over the episodes.
    recurrent_mask : array (batch_size, hidden_size), optional
        Multiplies h of the step before, in the shape of `h0`, wherever a matrix product reads it, the same at every
        step: variational dropout (Gal and Ghahramani, "A Theoretically Grounded Application of Dropout in Recurrent
        Neural Networks", 2016), Keras's recurrent_dropout. For a rate p draw 0 with probability p, else 1 / (1 - p). It
        gets no gradient. What a GRU keeps of h, z * h, is not multiplied. The numba backend leaves calls with a mask or
        with `weight_hr` to the NumPy specification, which is slow.
    return_states : bool
        Also return c of every step. Only an LSTM has it: of a GRU and an RNN the output is every state.
    threads : int, optional
        At most this many threads; `get_num_threads()` by default. The result does not depend on it.
    out : array, optional
        Where `output` is written, and what is returned as `output`: of its shape and dtype, writeable, and sharing no
        memory with any other argument. Only a feature stride other than 1 costs a copy. What it holds after an error
        in the middle of the call, as after Ctrl-C, is undefined.

    Returns
    -------
    output : array (seq_len, batch_size, hidden_size)
        h of every step, in the layout of `x`.
    (h_n, c_n) : arrays (batch_size, hidden_size)
        The states after the step processed last.
    c : array (seq_len, batch_size, hidden_size)
        c of every step, like `output`; only with `return_states`.

    Raises
    ------
    TypeError
        A dtype other than float32 or float64, or two dtypes in one call; `lengths` and `offsets` that are not integers,
        `resets` that are not bool.
    ValueError
        A shape that does not fit; the message names the argument, the rule and both shapes. `lengths` or `offsets` out
        of their range.

    Examples
    --------
    >>> import numpy as np, hotloop
    >>> rng = np.random.default_rng(0)
    >>> x = rng.standard_normal((100, 8, 40), dtype=np.float32)
    >>> weight_ih = 0.1 * rng.standard_normal((4 * 32, 40), dtype=np.float32)
    >>> weight_hh = 0.1 * rng.standard_normal((4 * 32, 32), dtype=np.float32)
    >>> output, (h_n, c_n) = hotloop.lstm(x, weight_ih, weight_hh)
    >>> output.shape, h_n.shape, c_n.shape
    ((100, 8, 32), (8, 32), (8, 32))
    >>> bool((output[-1] == h_n).all())
    True

    Of sequences of several lengths, in any order, the padding does not matter:

    >>> lengths = np.array([100, 3, 57, 0, 12, 100, 80, 1])
    >>> padded, (h_n, c_n) = hotloop.lstm(x, weight_ih, weight_hh, lengths=lengths)
    >>> bool((h_n[2] == padded[56, 2]).all()), bool((padded[57:, 2] == 0).all())
    (True, True)

    The same without any:

    >>> flat = np.concatenate([x[:length, b] for b, length in enumerate(lengths)])
    >>> output, _ = hotloop.lstm(flat, weight_ih, weight_hh, offsets=np.append(0, lengths.cumsum()))
    >>> output.shape, bool(np.allclose(output[103:160], padded[:57, 2], atol=1e-6))
    ((353, 32), True)

    Episodes that begin in the middle of a sequence:

    >>> resets = np.zeros((100, 8), bool)
    >>> resets[[30, 60], 0] = True
    >>> output, (h_n, c_n), c = hotloop.lstm(x, weight_ih, weight_hh, resets=resets, return_states=True)
    >>> alone, _ = hotloop.lstm(x[30:60, 0], weight_ih, weight_hh)
    >>> c.shape, bool(np.allclose(output[30:60, 0], alone, atol=1e-6))
    ((100, 8, 32), True)
    """
    output, h_n, c_n, c, _ = _run(
        *_lstm_weights(weight_ih, weight_hh, bias_ih, bias_hh, weight_hr), x, h0, c0, training=False,
        batch_first=batch_first, reverse=reverse, lengths=lengths, offsets=offsets, resets=resets,
        reset_state=reset_state, return_states=return_states, threads=threads, out=out, recurrent_mask=recurrent_mask,
    )  # fmt: skip
    assert c_n is not None
    return (output, (h_n, c_n)) if c is None else (output, (h_n, c_n), c)


@overload
def lstm_vjp(
    x: Any, weight_ih: Any, weight_hh: Any, bias_ih: Any = None, bias_hh: Any = None, h0: Any = None, c0: Any = None,
    *, return_states: Literal[False] = False, weight_hr: Any = None, **options: Unpack[SequenceOptions],
) -> tuple[tuple[Array, States], Callable[..., LSTMGradients]]: ...  # fmt: skip
@overload
def lstm_vjp(
    x: Any, weight_ih: Any, weight_hh: Any, bias_ih: Any = None, bias_hh: Any = None, h0: Any = None, c0: Any = None,
    *, return_states: Literal[True], weight_hr: Any = None, **options: Unpack[SequenceOptions],
) -> tuple[tuple[Array, States, Array], Callable[..., LSTMGradients]]: ...  # fmt: skip
def lstm_vjp(
    x: Any,
    weight_ih: Any,
    weight_hh: Any,
    bias_ih: Any = None,
    bias_hh: Any = None,
    h0: Any = None,
    c0: Any = None,
    *,
    weight_hr: Any = None,
    batch_first: bool = False,
    reverse: bool = False,
    lengths: Any = None,
    offsets: Any = None,
    resets: Any = None,
    reset_state: str = "zeros",
    recurrent_mask: Any = None,
    return_states: bool = False,
    threads: int | None = None,
) -> tuple[tuple[Array, States] | tuple[Array, States, Array], Callable[..., LSTMGradients]]:
    """Run an LSTM over whole sequences, and return what backpropagation through time needs.

    Equations, parameters and errors are those of `lstm`, without `out`.

    Returns
    -------
    (output, (h_n, c_n))
        As from `lstm`, bit for bit; (output, (h_n, c_n), c) with `return_states`. `output` and `c` are read-only,
        because `vjp` reads them.
    vjp : callable
        ``vjp(grad_output=None, grad_h_n=None, grad_c_n=None, *, wrt=None, accumulate_into=None) -> LSTMGradients``: the
        vector-Jacobian product. With `return_states` there is `grad_c` after `grad_c_n`. Upstream gradients have the
        shapes of the results; absent ones count as zero. The result is a named tuple (x, weight_ih, weight_hh, bias_ih,
        bias_hh, h0, c0, weight_hr): gradients of absent parameters are None, those of h0 and c0 are always there;
        `wrt`, an iterable of these names, skips what it does not name (None). It may be called any number of times. `x`
        and the weights are not copied: do not change them before the last call. States, `lengths`, `offsets`, `resets`
        and `recurrent_mask` are.

        `accumulate_into`, the result of another call, has the gradients of weights and biases added to it in place,
        and its arrays are in the result; those of `x` and of states are new. So the gradients of several batches add
        up, and a long sequence is trained in pieces: each starts from the state at the end of the one before, and
        backward goes from the last piece to the first, with the states' gradients of one as `grad_h_n` and `grad_c_n`
        of the next. The result has the bits of one call over the whole (with the numba backend it is equal up to
        rounding), for `lengths`, `reverse` and `resets` too, whose pieces are steps in the order of processing.
        `reset_state="initial"` means the states that a piece starts from. After an error in the middle, as after
        Ctrl-C, what it holds is undefined.

    Examples
    --------
    >>> import numpy as np, hotloop
    >>> rng = np.random.default_rng(0)
    >>> x = rng.standard_normal((100, 8, 40))
    >>> weight_ih, weight_hh = rng.standard_normal((128, 40)) / 8, rng.standard_normal((128, 32)) / 8
    >>> (output, (h_n, c_n)), vjp = hotloop.lstm_vjp(x, weight_ih, weight_hh)
    >>> grads = vjp(grad_output=np.ones_like(output))
    >>> grads.x.shape, grads.weight_hh.shape, grads.bias_ih, grads.c0.shape
    ((100, 8, 40), (128, 32), None, (8, 32))

    The same in two pieces:

    >>> (_, (h, c)), vjp_1 = hotloop.lstm_vjp(x[:60], weight_ih, weight_hh)
    >>> _, vjp_2 = hotloop.lstm_vjp(x[60:], weight_ih, weight_hh, h0=h, c0=c)
    >>> later = vjp_2(np.ones((40, 8, 32)))
    >>> total = vjp_1(np.ones((60, 8, 32)), later.h0, later.c0, accumulate_into=later)
    >>> np.allclose(total.weight_hh, grads.weight_hh, rtol=1e-12)
    True
    """
    output, h_n, c_n, c, saved = _run(
        *_lstm_weights(weight_ih, weight_hh, bias_ih, bias_hh, weight_hr), x, h0, c0, training=True,
        batch_first=batch_first, reverse=reverse, lengths=lengths, offsets=offsets, resets=resets,
        reset_state=reset_state, return_states=return_states, threads=threads, recurrent_mask=recurrent_mask,
    )  # fmt: skip
    assert c_n is not None
    vjp = _vjp(output, c, saved)
    return ((output, (h_n, c_n)) if c is None else (output, (h_n, c_n), c)), vjp


def gru(
    x: Any,
    weight_ih: Any,
    weight_hh: Any,
    bias_ih: Any = None,
    bias_hh: Any = None,
    h0: Any = None,
    *,
    reset_after: bool = True,
    batch_first: bool = False,
    reverse: bool = False,
    lengths: Any = None,
    offsets: Any = None,
    resets: Any = None,
    reset_state: str = "zeros",
    recurrent_mask: Any = None,
    return_states: bool = False,
    threads: int | None = None,
    out: Any = None,
) -> tuple[Array, Array]:
    """Run a GRU over whole sequences, for inference.

    .. code-block:: text

        r = sigmoid(x W_ir' + b_ir + h W_hr' + b_hr)
        z = sigmoid(x W_iz' + b_iz + h W_hz' + b_hz)
        n =    tanh(x W_in' + b_in + r * (h W_hn' + b_hn))          reset_after=True
        n =    tanh(x W_in' + b_in + (r * h) W_hn' + b_hn)          reset_after=False
        h' = (1 - z) * n + z * h

    The first n is that of torch.nn.GRU, cuDNN and Keras' default; the second that of Cho et al., "Learning Phrase
    Representations" (2014), and ONNX's default (linear_before_reset=0).

    Parameters
    ----------
    x : array (seq_len, batch_size, input_size)
        (batch_size, seq_len, input_size) with `batch_first`, (seq_len, input_size) for one unbatched sequence.
    weight_ih : array (3*hidden_size, input_size)
        Rows in gate order r, z, n. Its dtype, float32 or float64, is that of the call.
    weight_hh : array (3*hidden_size, hidden_size)
    bias_ih, bias_hh : array (3*hidden_size,), optional
    h0 : array (batch_size, hidden_size), optional
        Initial state, zero by default; (hidden_size,) if `x` is unbatched.
    reset_after : bool
        Whether r multiplies the matrix product (torch) or h before it (Cho et al.), which takes two products a step.
    batch_first, reverse, lengths, offsets, resets, reset_state, recurrent_mask, threads, out
        As in `lstm`.
    return_states : bool
        False: `output` holds every state.

    Returns
    -------
    output : array (seq_len, batch_size, hidden_size)
        h of every step, in the layout of `x`.
    h_n : array (batch_size, hidden_size)
        The state after the step processed last.

    Raises
    ------
    TypeError, ValueError
        As `lstm`.

    Examples
    --------
    >>> import numpy as np, hotloop
    >>> rng = np.random.default_rng(0)
    >>> x = rng.standard_normal((100, 8, 40))
    >>> weight_ih, weight_hh = rng.standard_normal((96, 40)) / 8, rng.standard_normal((96, 32)) / 8
    >>> output, h_n = hotloop.gru(x, weight_ih, weight_hh)
    >>> output.shape, h_n.shape
    ((100, 8, 32), (8, 32))
    >>> output, h_n = hotloop.gru(x, weight_ih, weight_hh, lengths=[100, 3, 57, 0, 12, 100, 80, 1])
    >>> bool((output[56, 2] == h_n[2]).all())
    True
    """
    output, h_n, *_ = _run(
        gru_cell(reset_after), (weight_ih, weight_hh, bias_ih, bias_hh), x, h0, None, training=False,
        batch_first=batch_first, reverse=reverse, lengths=lengths, offsets=offsets, resets=resets,
        reset_state=reset_state, return_states=return_states, threads=threads, out=out, recurrent_mask=recurrent_mask,
    )  # fmt: skip
    return output, h_n


def gru_vjp(
    x: Any,
    weight_ih: Any,
    weight_hh: Any,
    bias_ih: Any = None,
    bias_hh: Any = None,
    h0: Any = None,
    *,
    reset_after: bool = True,
    batch_first: bool = False,
    reverse: bool = False,
    lengths: Any = None,
    offsets: Any = None,
    resets: Any = None,
    reset_state: str = "zeros",
    recurrent_mask: Any = None,
    return_states: bool = False,
    threads: int | None = None,
) -> tuple[tuple[Array, Array], Callable[..., Gradients]]:
    """Run a GRU over whole sequences, and return what backpropagation through time needs.

    Equations, parameters and errors are those of `gru`, without `out`.

    Returns
    -------
    (output, h_n)
        As from `gru`, bit for bit. `output` is read-only, because `vjp` reads it.
    vjp : callable
        ``vjp(grad_output=None, grad_h_n=None, *, wrt=None) -> Gradients``, a named tuple (x, weight_ih, weight_hh,
        bias_ih, bias_hh, h0); otherwise as from `lstm_vjp`.

    Examples
    --------
    >>> import numpy as np, hotloop
    >>> rng = np.random.default_rng(0)
    >>> x = rng.standard_normal((100, 8, 40))
    >>> weight_ih, weight_hh = rng.standard_normal((96, 40)) / 8, rng.standard_normal((96, 32)) / 8
    >>> (output, h_n), vjp = hotloop.gru_vjp(x, weight_ih, weight_hh)
    >>> vjp(grad_h_n=np.ones_like(h_n), wrt=["weight_hh"]).weight_hh.shape
    (96, 32)
    """
    output, h_n, _, _, saved = _run(
        gru_cell(reset_after), (weight_ih, weight_hh, bias_ih, bias_hh), x, h0, None, training=True,
        batch_first=batch_first, reverse=reverse, lengths=lengths, offsets=offsets, resets=resets,
        reset_state=reset_state, return_states=return_states, threads=threads, recurrent_mask=recurrent_mask,
    )  # fmt: skip
    return (output, h_n), _vjp(output, None, saved)


def rnn(
    x: Any,
    weight_ih: Any,
    weight_hh: Any,
    bias_ih: Any = None,
    bias_hh: Any = None,
    h0: Any = None,
    *,
    nonlinearity: str = "tanh",
    batch_first: bool = False,
    reverse: bool = False,
    lengths: Any = None,
    offsets: Any = None,
    resets: Any = None,
    reset_state: str = "zeros",
    recurrent_mask: Any = None,
    return_states: bool = False,
    threads: int | None = None,
    out: Any = None,
) -> tuple[Array, Array]:
    """Run a vanilla RNN over whole sequences, for inference.

    .. code-block:: text

        h' = tanh(x W_ih' + b_ih + h W_hh' + b_hh)          or relu in the place of tanh

    The equation is that of torch.nn.RNN: Elman, "Finding Structure in Time" (1990).

    Parameters
    ----------
    x : array (seq_len, batch_size, input_size)
        (batch_size, seq_len, input_size) with `batch_first`, (seq_len, input_size) for one unbatched sequence.
    weight_ih : array (hidden_size, input_size)
        Its dtype, float32 or float64, is that of the call.
    weight_hh : array (hidden_size, hidden_size)
    bias_ih, bias_hh : array (hidden_size,), optional
    h0 : array (batch_size, hidden_size), optional
        Initial state, zero by default; (hidden_size,) if `x` is unbatched.
    nonlinearity : {"tanh", "relu"}
    batch_first, reverse, lengths, offsets, resets, reset_state, recurrent_mask, threads, out
        As in `lstm`.
    return_states : bool
        False: `output` holds every state.

    Returns
    -------
    output : array (seq_len, batch_size, hidden_size)
        h of every step, in the layout of `x`.
    h_n : array (batch_size, hidden_size)
        The state after the step processed last.

    Raises
    ------
    TypeError, ValueError
        As `lstm`.

    Examples
    --------
    >>> import numpy as np, hotloop
    >>> rng = np.random.default_rng(0)
    >>> x = rng.standard_normal((100, 40))
    >>> weight_ih, weight_hh = rng.standard_normal((32, 40)) / 8, rng.standard_normal((32, 32)) / 8
    >>> output, h_n = hotloop.rnn(x, weight_ih, weight_hh, nonlinearity="relu")
    >>> output.shape, h_n.shape
    ((100, 32), (32,))
    """
    output, h_n, *_ = _run(
        rnn_cell(nonlinearity), (weight_ih, weight_hh, bias_ih, bias_hh), x, h0, None, training=False,
        batch_first=batch_first, reverse=reverse, lengths=lengths, offsets=offsets, resets=resets,
        reset_state=reset_state, return_states=return_states, threads=threads, out=out, recurrent_mask=recurrent_mask,
    )  # fmt: skip
    return output, h_n


def rnn_vjp(
    x: Any,
    weight_ih: Any,
    weight_hh: Any,
    bias_ih: Any = None,
    bias_hh: Any = None,
    h0: Any = None,
    *,
    nonlinearity: str = "tanh",
    batch_first: bool = False,
    reverse: bool = False,
    lengths: Any = None,
    offsets: Any = None,
    resets: Any = None,
    reset_state: str = "zeros",
    recurrent_mask: Any = None,
    return_states: bool = False,
    threads: int | None = None,
) -> tuple[tuple[Array, Array], Callable[..., Gradients]]:
    """Run a vanilla RNN over whole sequences, and return what backpropagation through time needs.

    Equations, parameters and errors are those of `rnn`, without `out`.

    Returns
    -------
    (output, h_n)
        As from `rnn`, bit for bit. `output` is read-only, because `vjp` reads it.
    vjp : callable
        ``vjp(grad_output=None, grad_h_n=None, *, wrt=None) -> Gradients``; as from `gru_vjp`.

    Examples
    --------
    >>> import numpy as np, hotloop
    >>> rng = np.random.default_rng(0)
    >>> x = rng.standard_normal((100, 40))
    >>> weight_ih, weight_hh = rng.standard_normal((32, 40)) / 8, rng.standard_normal((32, 32)) / 8
    >>> (output, h_n), vjp = hotloop.rnn_vjp(x, weight_ih, weight_hh)
    >>> vjp(grad_output=np.ones_like(output)).x.shape
    (100, 40)
    """
    output, h_n, _, _, saved = _run(
        rnn_cell(nonlinearity), (weight_ih, weight_hh, bias_ih, bias_hh), x, h0, None, training=True,
        batch_first=batch_first, reverse=reverse, lengths=lengths, offsets=offsets, resets=resets,
        reset_state=reset_state, return_states=return_states, threads=threads, recurrent_mask=recurrent_mask,
    )  # fmt: skip
    return (output, h_n), _vjp(output, None, saved)


def clip_grad_norm_(
    grads: Array | Mapping[str, Any] | Iterable[Any], max_norm: float, *, error_if_nonfinite: bool = False
) -> float:
    """Scale gradients in place so that their norm, taken over all of them together, is at most `max_norm`.

    Equivalent to torch.nn.utils.clip_grad_norm_ with the 2-norm (Pascanu, Mikolov, Bengio, "On the difficulty of
    training recurrent neural networks", 2013): scale = min(1, max_norm / (norm + 1e-6)).

    Parameters
    ----------
    grads : array, mapping or iterable of arrays
        E.g. what `vjp` returns, or a dict of all the gradients of a model. None is passed over. Of what a layer's `vjp`
        returns the parameters are taken; of a function's all that is there, so leave out x and the states with `wrt=`
        to have torch's norm of the parameters.
    max_norm : float
        At least 0.
    error_if_nonfinite : bool
        Raise where the norm is NaN or infinite; otherwise the gradients become NaN or zero, as in torch.

    Returns
    -------
    float
        The norm before clipping, summed in float64.

    Raises
    ------
    TypeError
        A gradient that is no writable float32 or float64 array.
    ValueError
        A negative `max_norm`; a norm that is not finite, with `error_if_nonfinite`. No gradient has been changed.

    Examples
    --------
    >>> import numpy as np, hotloop
    >>> grads = {"weight": np.array([3.0, 0.0]), "bias": np.array([4.0]), "absent": None}
    >>> hotloop.clip_grad_norm_(grads, max_norm=1.0)
    5.0
    >>> bool(np.isclose(np.hypot(grads["weight"][0], grads["bias"][0]), 1.0))
    True
    """
    items: Any = (grads,) if isinstance(grads, np.ndarray) else getattr(grads, "parameters", grads)
    arrays = [item for item in (items.values() if isinstance(items, Mapping) else items) if item is not None]
    if not isinstance(max_norm, (int, float, np.integer, np.floating)):
        raise TypeError(f"max_norm: expected a number >= 0, got {max_norm!r}")
    if not max_norm >= 0:
        raise ValueError(f"max_norm: expected a number >= 0, got {max_norm}")
    for index, array in enumerate(arrays):
        if not isinstance(array, np.ndarray) or array.dtype not in (np.float32, np.float64):
            kind = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
            raise TypeError(f"grads: expected float32 or float64 arrays, got {kind} at {index}")
        if not array.flags.writeable:
            raise TypeError(f"grads: expected writable arrays, got a read-only one at {index}")
    norm = float(np.sqrt(sum(np.square(array, dtype=np.float64).sum() for array in arrays)))
    if error_if_nonfinite and not np.isfinite(norm):
        raise ValueError(f"grads: expected a finite norm, got {norm}")
    scale = max_norm / (norm + 1e-6)
    if not scale >= 1:  # NaN included: torch multiplies by it too
        for array in {id(array): array for array in arrays}.values():  # an array given twice is scaled once
            array *= array.dtype.type(scale)
    return norm
