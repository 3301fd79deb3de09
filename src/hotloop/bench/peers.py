"""The candidates: ourselves and the libraries we are compared with, each at its best.

Everything here runs inside a worker process; libraries are imported only there. A candidate holds packed weights in
inference where it can; in training weights change every step, so nothing is prepared.

The two inference runtimes get their inputs and outputs bound once, which no user of a changing input has: it saves
them 3 us (ONNX Runtime) and 45 us (OpenVINO) a call against arrays in and arrays out, as we are called.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from typing import Any, Protocol

import numpy as np

from .. import functional, info
from .._backends import cells as _cells
from .._core.types import PARAMETERS, Array
from .check import Inputs, is_stack, make_layer, name_states, run_ours
from .problems import Problem


class Unsupported(Exception):
    """The candidate cannot do this problem, and why."""


@dataclass(frozen=True)
class Prepared:
    """A problem, ready to run.

    `run` is what is timed. `answer` runs the same thing once more, with the upstream gradient given (inference
    ignores it), and returns output, h_n, c_n, x, weight_ih_l0 and so on by torch's names; inference output and states.
    """

    run: Callable[[], object]
    answer: Callable[[Array], dict[str, Array]]


class Candidate(Protocol):
    """One library at one number of threads, in a process of its own."""

    def versions(self) -> dict[str, str]:
        """Return what was measured, by name."""

    def prepare(self, problem: Problem, inputs: Inputs) -> Prepared:
        """Do all that need not be done again for every call. Raises Unsupported."""


class Hotloop:
    """Ourselves, on whatever backend is active: the native one, or another one beside it."""

    def __init__(self, threads: int) -> None:
        self._threads = threads

    def versions(self) -> dict[str, str]:
        """Return what was measured, by name."""
        about = info()
        return {"hotloop": about.version, "backend": about.backend, "variant": about.variant, "numpy": np.__version__}

    def prepare(self, problem: Problem, inputs: Inputs) -> Prepared:
        """Pack the weights for inference; for training there is nothing to prepare. Swap a module of torch."""
        threads = self._threads
        if problem.module:
            return _prepare_swapped(problem, inputs, threads)
        x, grad_output = inputs.x, inputs.grad_output
        options: dict[str, Any] = {"threads": threads, **inputs.rows}

        def answer(gradient: Array) -> dict[str, Array]:
            return run_ours(problem, inputs, gradient, threads)

        if problem.mode == "inference":
            infer = partial(make_layer(problem, inputs), x, **options)

            def answer_of_layers(_: Array) -> dict[str, Array]:
                output, state = infer()
                return {"output": output, **name_states(problem, state)}

            return Prepared(infer, answer_of_layers)
        if is_stack(problem):
            stack = make_layer(problem, inputs)

            def step_of_layers() -> object:
                _, vjp = stack.vjp(x, **options)
                return vjp(grad_output)

            return Prepared(step_of_layers, answer)
        function, (weights,) = getattr(functional, f"{problem.cell}_vjp"), inputs.recurrences

        def step() -> object:
            _, vjp = function(x, *weights, **options)
            return vjp(grad_output)

        return Prepared(step, answer)


class Torch:
    """torch.nn.LSTM, GRU and RNN: under inference_mode, and forward + output.backward(gradient).

    Rows of several lengths are packed and unpacked in the call. Resets take a loop over steps, as in libraries of
    reinforcement learning, by the faster of cell and layer.
    """

    def __init__(self, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self._torch: Any = torch

    def versions(self) -> dict[str, str]:
        """Return what was measured, by name."""
        return {"torch": self._torch.__version__}

    def prepare(self, problem: Problem, inputs: Inputs) -> Prepared:
        """Make a module with our weights."""
        torch = self._torch
        module = torch_module(torch, problem, inputs)
        if problem.module:
            return _prepare_module(torch, problem, inputs, module)
        x, forward = torch.from_numpy(inputs.x), _torch_forward(torch, problem, inputs, module)
        name_results = partial(_name_torch_results, problem)

        if problem.mode == "inference":
            module.eval()

            @torch.inference_mode()  # type: ignore[untyped-decorator]
            def infer() -> Any:
                return forward(x)

            return Prepared(infer, lambda _: name_results(*infer()))

        x.requires_grad_()
        grad_output = torch.from_numpy(inputs.grad_output)

        def step(gradient: Any = grad_output) -> Any:
            module.zero_grad(set_to_none=True)
            x.grad = None
            output, state = forward(x)
            output.backward(gradient)
            return output, state

        def answer(gradient: Array) -> dict[str, Array]:
            found = name_results(*step(torch.from_numpy(gradient)))
            grads = {name: parameter.grad.numpy() for name, parameter in module.named_parameters()}
            return {**found, "x": x.grad.numpy(), **grads}

        return Prepared(step, answer)


def torch_module(torch: Any, problem: Problem, inputs: Inputs) -> Any:
    """Make a layer or a cell of torch.nn with our weights."""
    dtype = getattr(torch, problem.dtype)
    if problem.module == "cell":
        kind = {"lstm": torch.nn.LSTMCell, "gru": torch.nn.GRUCell, "rnn": torch.nn.RNNCell}[problem.cell]
        module = kind(problem.input_size, problem.hidden_size, dtype=dtype)
    else:
        kind = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU, "rnn": torch.nn.RNN}[problem.cell]
        module = kind(
            problem.input_size,
            problem.hidden_size,
            num_layers=problem.num_layers,
            bidirectional=problem.bidirectional,
            dtype=dtype,
            **({"proj_size": problem.proj_size} if problem.proj_size else {}),  # of which a GRU knows nothing
        )
    names = module.state_dict()  # a cell's are without _l0
    module.load_state_dict(
        {name: torch.from_numpy(value) for name, value in zip(names, inputs.parameters.values(), strict=True)}
    )
    return module


def _name_torch_results(problem: Problem, output: Any, state: Any) -> dict[str, Array]:
    """Return output and states as arrays, by our names."""
    states = [one.detach().numpy() for one in state] if problem.cell == "lstm" else state.detach().numpy()
    return {"output": output.detach().numpy(), **name_states(problem, states)}


# Of the timed steps of SGD: thousands of them move the weights, but not to where cells saturate.
LEARNING_RATE = 1e-7


def _prepare_module(torch: Any, problem: Problem, inputs: Inputs, module: Any) -> Prepared:
    """Prepare a call of a module, stock or swapped: a whole training step, or inference under no_grad.

    A training step is forward, backward from a given gradient of the output, and plain SGD; x is data. Its answer is
    checked by what the update did at a learning rate of one.
    """
    if problem.resets:
        raise Unsupported("has no resets")
    name_results = partial(_name_torch_results, problem)
    x = torch.from_numpy(inputs.x)
    if problem.module == "cell":
        if problem.mode == "training" or problem.seq_len != 1 or is_stack(problem):
            raise Unsupported("cells are timed for inference, one step of one layer")
        zeros = torch.zeros(problem.batch_size, problem.hidden_size, dtype=x.dtype)
        row, state = x[0], (zeros, zeros.clone()) if problem.cell == "lstm" else zeros

        @torch.no_grad()  # type: ignore[untyped-decorator]
        def one_step() -> Any:
            return module(row, state)

        def answer_of_cell(_: Array) -> dict[str, Array]:
            after = one_step()
            h = after[0] if problem.cell == "lstm" else after
            return name_results(h[None], after)

        return Prepared(one_step, answer_of_cell)
    forward = _torch_forward(torch, problem, inputs, module)
    if problem.mode == "inference":
        module.eval()

        @torch.no_grad()  # type: ignore[untyped-decorator]
        def infer() -> Any:
            return forward(x)

        return Prepared(infer, lambda _: name_results(*infer()))

    grad_output = torch.from_numpy(inputs.grad_output)
    optimizer = torch.optim.SGD(module.parameters(), lr=LEARNING_RATE)

    def step(gradient: Any = grad_output) -> Any:
        optimizer.zero_grad()
        output, state = forward(x)
        output.backward(gradient)
        optimizer.step()
        return output, state

    def answer(gradient: Array) -> dict[str, Array]:
        before = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
        (group,) = optimizer.param_groups
        group["lr"] = 1.0
        found = name_results(*step(torch.from_numpy(gradient)))
        moved = {name: (before[name] - after.detach()).numpy() for name, after in module.named_parameters()}
        group["lr"] = LEARNING_RATE
        module.load_state_dict(before)
        return {**found, **moved}

    return Prepared(step, answer)


def _prepare_swapped(problem: Problem, inputs: Inputs, threads: int) -> Prepared:
    """Prepare the same module, its class changed by `hotloop.torch.replace_modules` and nothing else."""
    import torch

    from ..torch import replace_modules

    torch.set_num_threads(threads)
    module = torch_module(torch, problem, inputs)
    done = replace_modules(module)
    if not done.replaced:
        raise RuntimeError(f"replace_modules: {done}")
    return _prepare_module(torch, problem, inputs, module)


def _torch_forward(torch: Any, problem: Problem, inputs: Inputs, module: Any) -> Callable[[Any], Any]:
    """Return what gives output and states of x: the module itself, or what users put around it."""
    if problem.is_dense:
        forward: Callable[[Any], Any] = module
        return forward
    if inputs.resets is None:
        rnn, lengths = torch.nn.utils.rnn, torch.from_numpy(inputs.lengths)

        def packed(x: Any) -> Any:
            output, state = module(rnn.pack_padded_sequence(x, lengths, enforce_sorted=False))
            return rnn.pad_packed_sequence(output, total_length=problem.seq_len)[0], state

        return packed
    if problem.bidirectional or problem.lengths:
        raise Unsupported("resets only forward in time and without padding")
    zeros = torch.zeros(problem.num_layers, problem.batch_size, problem.hidden_size, dtype=module.weight_ih_l0.dtype)
    keep = torch.from_numpy(~inputs.resets[:, None, :, None]).to(zeros.dtype)

    # At T128 B16 I64 H128, training on one thread, LSTMCell takes 44 ms and the layer 56, the GRU's 41 and 39. Here the
    # module's own parameters go to the function that LSTMCell calls. Steps are split off beforehand: the gradient of
    # x[t:t + 1] would be as large as that of all x, T times.
    def loop_of_cell(x: Any) -> Any:
        h, c, outputs = zeros[0], zeros[0], []
        weights = tuple(getattr(module, f"{name}_l0") for name in PARAMETERS)
        for step, kept in zip(x.unbind(), keep[:, 0], strict=True):
            h, c = torch.lstm_cell(step, (h * kept, c * kept), *weights)
            outputs.append(h)
        return torch.stack(outputs), (h, c)

    def loop_with_c(x: Any) -> Any:
        h, c, outputs = zeros, zeros, []
        for step, kept in zip(x.split(1), keep, strict=True):
            output, (h, c) = module(step, (h * kept, c * kept))
            outputs.append(output)
        return torch.cat(outputs), (h, c)

    def loop(x: Any) -> Any:
        h, outputs = zeros, []
        for step, kept in zip(x.split(1), keep, strict=True):
            output, h = module(step, h * kept)
            outputs.append(output)
        return torch.cat(outputs), h

    if problem.cell != "lstm":
        return loop
    return loop_of_cell if problem.num_layers == 1 else loop_with_c


# Gate order and operator of ONNX, from its operator specification: LSTM i o f c (c is our g), GRU z r h (h is our n).
ONNX_GATES = {"lstm": (0, 3, 1, 2), "gru": (1, 0, 2), "rnn": (0,)}


def onnx_model(problem: Problem, inputs: Inputs) -> bytes:
    """Write the forward pass as an ONNX model with fixed shapes: input x, outputs output, h_n and c_n of every layer.

    Where rows have several lengths, these are an input too: users have others in every batch.
    One node a layer. A node's output is [T, D, B, H] and the next one reads [T, B, D*H]: for one direction that is
    the same memory, two are transposed, as every exporter has it. The last output stays as it is, so the runtime is
    spared one transposition; `onnx_output` makes it ours.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    if problem.resets:
        raise Unsupported("has no resets")
    order = ONNX_GATES[problem.cell]

    def reorder(array: Array) -> Array:
        return np.concatenate([np.split(array, problem.gates)[gate] for gate in order])

    steps, batch, hidden, directions = problem.seq_len, problem.batch_size, problem.hidden_size, problem.directions
    attributes: dict[str, Any] = {"linear_before_reset": 1} if problem.cell == "gru" else {}
    if problem.bidirectional:
        attributes["direction"] = "bidirectional"
    constants: dict[str, Array] = {}
    nodes, states, sequence = [], [], "x"
    for layer in range(problem.num_layers):
        weights = inputs.recurrences[layer * directions : (layer + 1) * directions]
        named = {
            f"weight_ih_l{layer}": np.stack([reorder(w_ih) for w_ih, _, _, _ in weights]),
            f"weight_hh_l{layer}": np.stack([reorder(w_hh) for _, w_hh, _, _ in weights]),
            f"bias_l{layer}": np.stack(
                [np.concatenate((reorder(b_ih), reorder(b_hh))) for _, _, b_ih, b_hh in weights]
            ),
        }
        constants |= named
        last = [f"h_n_l{layer}", f"c_n_l{layer}"] if problem.cell == "lstm" else [f"h_n_l{layer}"]
        states += last
        top = layer == problem.num_layers - 1
        output = "output" if top else f"output_l{layer}"
        operator = problem.cell.upper()
        read = [sequence, *named, "lengths"] if problem.lengths else [sequence, *named]
        nodes.append(helper.make_node(operator, read, [output, *last], hidden_size=hidden, **attributes))
        if not top:
            if problem.bidirectional:
                nodes.append(helper.make_node("Transpose", [output], [f"{output}_t"], perm=[0, 2, 1, 3]))
                output = f"{output}_t"
            constants["between"] = np.array([steps, batch, directions * hidden])
            sequence = f"input_l{layer + 1}"
            nodes.append(helper.make_node("Reshape", [output, "between"], [sequence]))
    element = TensorProto.DOUBLE if problem.dtype == "float64" else TensorProto.FLOAT
    shapes = {"output": (steps, directions, batch, hidden), **dict.fromkeys(states, (directions, batch, hidden))}
    given = [helper.make_tensor_value_info("x", element, (steps, batch, problem.input_size))]
    if problem.lengths:
        given.append(helper.make_tensor_value_info("lengths", TensorProto.INT32, (batch,)))
    graph = helper.make_graph(
        nodes,
        problem.name,
        given,
        [helper.make_tensor_value_info(name, element, shape) for name, shape in shapes.items()],
        [numpy_helper.from_array(np.ascontiguousarray(value), name) for name, value in constants.items()],
    )
    # Opset 14 and IR 8 are the oldest that say everything needed here, so that older runtimes load it too.
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def onnx_inputs(inputs: Inputs) -> dict[str, Array]:
    """Return the inputs of the model by name."""
    lengths = {} if inputs.lengths is None else {"lengths": inputs.lengths.astype(np.int32)}
    return {"x": inputs.x, **lengths}


def onnx_answer(problem: Problem, outputs: dict[str, Array]) -> dict[str, Array]:
    """Name the outputs of the model as ours."""
    names = ("h_n", "c_n")[: 2 if problem.cell == "lstm" else 1]
    states = {name: [outputs[f"{name}_l{layer}"] for layer in range(problem.num_layers)] for name in names}
    return {
        "output": onnx_output(outputs["output"]),
        **{name: np.concatenate(arrays) for name, arrays in states.items()},
    }


def onnx_output(array: Array) -> Array:
    """Return the output of the model, [T, D, B, H], as ours: [T, B, D*H]."""
    steps, directions, batch, hidden = array.shape
    return array.transpose(0, 2, 1, 3).reshape(steps, batch, directions * hidden)


class OnnxRuntime:
    """A session with its inputs and outputs bound once: no copy and no allocation in a call."""

    def __init__(self, threads: int) -> None:
        import onnxruntime

        self._threads = threads
        self._runtime: Any = onnxruntime

    def versions(self) -> dict[str, str]:
        """Return what was measured, by name."""
        return {"onnxruntime": self._runtime.__version__, "onnx": metadata.version("onnx")}

    def prepare(self, problem: Problem, inputs: Inputs) -> Prepared:
        """Make a session, inference only."""
        if problem.mode == "training":
            raise Unsupported("inference only")
        runtime = self._runtime
        options = runtime.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.inter_op_num_threads = 1
        options.execution_mode = runtime.ExecutionMode.ORT_SEQUENTIAL
        options.log_severity_level = 3
        try:
            session = runtime.InferenceSession(onnx_model(problem, inputs), options, ["CPUExecutionProvider"])
        except runtime.capi.onnxruntime_pybind11_state.NotImplemented as error:
            raise Unsupported(str(error).strip().splitlines()[0]) from error
        binding = session.io_binding()
        # The binding borrows the memory of all of these.
        bound = {name: runtime.OrtValue.ortvalue_from_numpy(array) for name, array in onnx_inputs(inputs).items()}
        for name, value in bound.items():
            binding.bind_ortvalue_input(name, value)
        results = {}
        for value in session.get_outputs():
            results[value.name] = runtime.OrtValue.ortvalue_from_shape_and_type(value.shape, inputs.x.dtype)
            binding.bind_ortvalue_output(value.name, results[value.name])

        def infer(_borrowed: Any = bound) -> None:
            session.run_with_iobinding(binding)

        def answer(_: Array) -> dict[str, Array]:
            infer()
            return onnx_answer(problem, {name: value.numpy() for name, value in results.items()})

        return Prepared(infer, answer)


class OpenVino:
    """The ONNX model compiled for latency, run through one inference request whose tensors stay where they are."""

    def __init__(self, threads: int) -> None:
        import openvino

        self._threads = threads
        self._openvino: Any = openvino
        self._core: Any = openvino.Core()

    def versions(self) -> dict[str, str]:
        """Return what was measured, by name."""
        return {"openvino": metadata.version("openvino"), "onnx": metadata.version("onnx")}

    def prepare(self, problem: Problem, inputs: Inputs) -> Prepared:
        """Compile the model, inference only."""
        if problem.mode == "training":
            raise Unsupported("inference only")
        if problem.dtype != "float32":
            raise Unsupported("computes in float32 only")
        config = {
            "INFERENCE_NUM_THREADS": self._threads,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",
        }
        compiled = self._core.compile_model(self._core.read_model(onnx_model(problem, inputs)), "CPU", config)
        request = compiled.create_infer_request()
        bound = onnx_inputs(inputs)
        for name, array in bound.items():
            request.set_tensor(name, self._openvino.Tensor(array, shared_memory=True))

        def infer(_borrowed: dict[str, Array] = bound) -> None:
            request.infer()  # the tensors do not keep the arrays alive: this function does

        def answer(_: Array) -> dict[str, Array]:
            infer()
            outputs = {port.any_name: np.array(request.get_tensor(port).data) for port in compiled.outputs}
            return onnx_answer(problem, outputs)

        return Prepared(infer, answer)


class Jax:
    """jit of a lax.scan over steps, the input projection hoisted out of it; value_and_grad for training.

    Lengths and resets are masks on the state inside the scan. What it leaves in the padding of its output is up to the
    user, so zeros are put there for the check only.
    """

    def __init__(self, threads: int) -> None:
        import jax

        self._jax: Any = jax
        self._jax.config.update("jax_enable_x64", True)

    def versions(self) -> dict[str, str]:
        """Return what was measured, by name."""
        return {"jax": self._jax.__version__, "jaxlib": metadata.version("jaxlib")}

    def prepare(self, problem: Problem, inputs: Inputs) -> Prepared:
        """Compile for the problem's shape."""
        jax = self._jax
        forward = _jax_forward(jax, problem)
        x, *weights = (jax.device_put(array) for array in (inputs.x, *inputs.parameters.values()))
        rows = [jax.device_put(array) for array in inputs.rows.values()]

        def name_results(output: Any, states: Any) -> dict[str, Array]:
            of_all = list(zip(*states, strict=True)) if problem.cell == "lstm" else states
            return {"output": inputs.without_padding(np.asarray(output)), **name_states(problem, of_all)}

        if problem.mode == "inference":
            compiled = jax.jit(forward).lower(x, *weights, *rows).compile()

            def infer() -> Any:
                return jax.block_until_ready(compiled(x, *weights, *rows))

            return Prepared(infer, lambda _: name_results(*infer()))

        def loss(arguments: tuple[Any, ...], gradient: Any, *rows: Any) -> tuple[Any, Any]:
            output, states = forward(*arguments, *rows)
            return (output * gradient).sum(), (output, states)

        arguments = (x, *weights)
        grad_output = jax.device_put(inputs.grad_output)
        compiled = jax.jit(jax.value_and_grad(loss, has_aux=True)).lower(arguments, grad_output, *rows).compile()

        def step(gradient: Any = grad_output) -> Any:
            return jax.block_until_ready(compiled(arguments, gradient, *rows))

        def answer(gradient: Array) -> dict[str, Array]:
            (_, results), grads = step(jax.device_put(gradient))
            names = ("x", *inputs.parameters)
            return {**name_results(*results), **{n: np.asarray(g) for n, g in zip(names, grads, strict=True)}}

        return Prepared(step, answer)


def _jax_forward(jax: Any, problem: Problem) -> Callable[..., Any]:
    """Put the specification's own equations under lax.scan, one for every layer and direction.

    The function returned takes x, all parameters and, where the problem has them, lengths and resets.
    """
    if problem.bidirectional and problem.resets:
        raise Unsupported("resets only forward in time")
    jnp = jax.numpy
    functions, cell_step = _cells.Functions(jnp.tanh, jax.nn.sigmoid, jax.nn.relu), _cells.STEPS[problem.cell_key]

    def masked(step: Callable[..., Any]) -> Callable[..., Any]:
        """Keep the state where a sequence has ended, put zeros in its place where an episode begins."""

        def choose(mask: Any, yes: Any, no: Any) -> Any:
            return jax.tree.map(lambda a, b: jnp.where(mask[:, None], a, b), yes, no)

        def masked_step(state: Any, given: Any) -> Any:
            x_share, masks = given
            if "begins" in masks:
                state = choose(masks["begins"], jax.tree.map(jnp.zeros_like, state), state)
            after, output = step(state, x_share)
            if "inside" in masks:
                after = choose(masks["inside"], after, state)
            return after, output

        return masked_step

    def scan(masks: Any, reverse: bool, x: Any, weight_ih: Any, weight_hh: Any, bias_ih: Any, bias_hh: Any) -> Any:
        def split(array: Any) -> Any:
            return jnp.split(array, problem.gates, axis=1)

        def product(operand: Any, stage: int) -> Any:
            # The GRU's reset gate multiplies bias_hh too, so there it stays inside the loop.
            share = operand @ weight_hh.T
            return split(share + bias_hh if problem.cell == "gru" else share)

        def step(state: Any, x_share: Any) -> Any:
            h, c = state if problem.cell == "lstm" else (state, None)
            after = cell_step.forward(split(x_share), product, h, h, c, functions)
            return (after.h, after.c) if problem.cell == "lstm" else after.h, after.h

        zeros = jnp.zeros((problem.batch_size, problem.hidden_size), x.dtype)
        start = (zeros, zeros) if problem.cell == "lstm" else zeros
        bias = bias_ih if problem.cell == "gru" else bias_ih + bias_hh
        x_share = x @ weight_ih.T + bias
        if masks:
            state, output = jax.lax.scan(masked(step), start, (x_share, masks), reverse=reverse)
        else:
            state, output = jax.lax.scan(step, start, x_share, reverse=reverse)
        return output, state

    def forward(x: Any, *arrays: Any) -> Any:
        count, states, masks = len(PARAMETERS), [], {}
        parameters = arrays[: problem.num_layers * problem.directions * count]
        rows = iter(arrays[len(parameters) :])
        if problem.lengths:
            masks["inside"] = jnp.arange(problem.seq_len)[:, None] < next(rows)
        if problem.resets:
            begins = next(rows)
            masks["begins"] = begins & masks["inside"] if problem.lengths else begins
        for layer in range(problem.num_layers):
            outputs = []
            for direction in range(problem.directions):
                start = (layer * problem.directions + direction) * count
                output, state = scan(masks, direction == 1, x, *parameters[start : start + count])
                outputs.append(output)
                states.append(state)
            x = outputs[0] if len(outputs) == 1 else jnp.concatenate(outputs, axis=-1)
        return x, states

    return forward


OURS = "hotloop"
BACKENDS = ("numba", "numpy")  # of ours, shown beside the best one
CANDIDATES: dict[str, Callable[[int], Candidate]] = {
    OURS: Hotloop,
    **dict.fromkeys(BACKENDS, Hotloop),  # in workers whose backend they are
    "torch": Torch,
    "onnxruntime": OnnxRuntime,
    "openvino": OpenVino,
    "jax": Jax,
}
PEERS = tuple(name for name in CANDIDATES if name != OURS)
INFERENCE_ONLY = ("onnxruntime", "openvino")
RUN_MODULES = (OURS, "torch")  # who takes part where the problem is a module of torch

_MODULES = {
    "numba": ("numba",),
    "numpy": ("numpy",),
    "torch": ("torch",),
    "onnxruntime": ("onnxruntime", "onnx"),
    "openvino": ("openvino", "onnx"),
    "jax": ("jax",),
}


def label(name: str) -> str:
    """Return how a candidate is shown: our own backends by our name."""
    return f"{OURS} ({name})" if name in BACKENDS else name


def missing_modules(peer: str) -> list[str]:
    """Return the modules a peer needs that are not installed; none where it can be measured."""
    return [module for module in _MODULES.get(peer, ()) if importlib.util.find_spec(module) is None]
