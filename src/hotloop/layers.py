"""Objects that hold packed weights."""

from __future__ import annotations

from typing import Any

from . import _backend
from ._contract import CELLS, Array, check_forward, check_weights


class Direction:
    """One direction of one layer, for inference: weights are checked and packed once, calls only compute.

    The small internal object of which the layers will be made. Weights are copied where the backend packs them; a
    later change of the arrays passed in is not seen.
    """

    def __init__(
        self,
        cell: str,
        weight_ih: Any,
        weight_hh: Any,
        bias_ih: Any = None,
        bias_hh: Any = None,
        *,
        reverse: bool = False,
    ) -> None:
        self._weights = check_weights(CELLS[cell], weight_ih, weight_hh, bias_ih, bias_hh)
        self._backend = _backend.active()
        self._packed = self._backend.pack(self._weights)
        self._reverse = reverse

    def __call__(
        self, x: Any, h0: Any = None, c0: Any = None, *, batch_first: bool = False, threads: int | None = None
    ) -> tuple[Array, Any]:
        """Return output and the last state: h_n, or (h_n, c_n) for an LSTM."""
        args, output, layout = check_forward(
            self._weights,
            x,
            h0,
            c0,
            batch_first=batch_first,
            reverse=self._reverse,
            lengths=None,
            resets=None,
            training=False,
            packed=self._packed,
        )
        self._backend.forward((args,), _backend.threads_of(threads))
        h_n = layout.state(args.h_n)
        return output, h_n if args.c_n is None else (h_n, layout.state(args.c_n))
