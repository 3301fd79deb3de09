"""The examples run, learn, and do what torch does."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

EXAMPLE = Path(__file__).parents[1] / "examples" / "japanese_vowels.py"


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location(EXAMPLE.stem, EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    sys.modules[EXAMPLE.stem] = module  # dataclasses look themselves up there
    try:
        spec.loader.exec_module(module)
        yield module
    finally:
        del sys.modules[EXAMPLE.stem]


@pytest.fixture
def one_torch_thread():
    """On batches this small two threads are slower, and on a busy machine many times slower."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_data_are_what_their_readme_says(example):
    train, test = example.load()
    assert (len(train.frames), len(test.frames)) == (270, 370)
    assert np.bincount(train.speaker).tolist() == [30] * 9
    assert np.bincount(test.speaker).tolist() == [31, 35, 88, 44, 29, 24, 40, 50, 29]
    lengths = [len(x) for x in train.frames + test.frames]
    assert (min(lengths), max(lengths)) == (7, 29)
    assert all(x.shape[1] == 12 and x.dtype == np.float32 and x[-1].any() for x in train.frames + test.frames)


def test_an_epoch_visits_every_utterance_once_in_full_batches(example):
    data, _ = example.standardise(*example.load(), "float64")
    settings = example.Settings(noise=0, offset=0, dtype="float64")
    batches = example.epoch_batches(data, settings, np.random.default_rng(0))
    assert [len(batch.speaker) for batch in batches] == [settings.batch] * (270 // 8) + [270 % 8]
    assert all(batch.x.shape == (batch.lengths.max(), len(batch.speaker), 12) for batch in batches)
    assert sum(len(set(batch.lengths)) > 1 for batch in batches) > 25
    seen = sorted(
        (int(who), batch.x[: batch.lengths[k], k].tobytes()) for batch in batches for k, who in enumerate(batch.speaker)
    )
    assert seen == sorted((int(who), x.tobytes()) for x, who in zip(data.frames, data.speaker, strict=True))


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_learns(example, cell):
    data, test = example.standardise(*example.load(), "float32")
    training = example.train(example.HotloopClassifier, cell, data, example.Settings(epochs=4), seed=0)
    assert training.losses[-1] < 0.5 * training.losses[0]
    accuracy, loss = example.evaluate(training.model, test)
    assert accuracy > 0.85  # by chance 0.11; about 0.95 here, and more after all the epochs
    assert loss < 0.6


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_every_step_is_torchs(example, cell, one_torch_thread):
    """Losses of the first steps, and the weights after them, in float64: forward, BPTT, clipping and Adam."""
    settings = example.Settings(dtype="float64", max_norm=1.5)
    data, _ = example.standardise(*example.load(), settings.dtype)
    rng = np.random.default_rng(0)
    weights = example.initial_weights(cell, settings, rng)
    theirs = example.TorchClassifier(cell, weights, settings)
    ours = example.HotloopClassifier(cell, weights, settings)
    clipped = 0
    for batch in example.epoch_batches(data, settings, rng)[:25]:
        _, grads = ours.gradients(batch)
        norm = np.sqrt(sum((grad**2).sum() for grad in grads.values()))
        clipped += norm > settings.max_norm
        assert ours.step(batch, 5e-3) == pytest.approx(theirs.step(batch, 5e-3), rel=1e-9)
    assert 0 < clipped < 25  # so that both ways have been compared
    for w, parameter in zip(ours.weights.values(), theirs.parameters, strict=True):
        torch.testing.assert_close(torch.from_numpy(w), parameter.data, rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(ours.logits(batch), theirs.logits(batch), rtol=1e-7, atol=1e-9)


def test_folds_are_held_out(example, monkeypatch):
    """Cross-validation trains on 24 utterances of each speaker, and scores the other 6."""
    seen = []
    evaluate = example.evaluate

    def record(model, data):
        seen.append(np.bincount(data.speaker).tolist())
        return evaluate(model, data)

    monkeypatch.setattr(example, "evaluate", record)
    settings = replace(example.Settings(), epochs=1, hidden=8)
    accuracy, _ = example.cross_validate("gru", example.load()[0], settings, seeds=1)
    assert seen == [[6] * 9] * 5
    assert accuracy > 0.2


def test_command(tmp_path):
    picture = tmp_path / "loss.svg"
    command = [sys.executable, str(EXAMPLE), "--quick", "--epochs", "2", "--plot", str(picture)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert "LSTM, 64 units, 2 epochs" in done.stdout
    assert "GRU, 64 units, 2 epochs" in done.stdout
    assert done.stdout.count("median:") == 2
    rows = [line.split() for line in done.stdout.splitlines() if line.endswith(" x")]
    assert {row[0] for row in rows} >= {"numpy", "torch"}
    for cell_rows in (rows[: len(rows) // 2], rows[len(rows) // 2 :]):  # loss of the first epoch, on each backend
        first = [float(row[5]) for row in cell_rows]
        assert first == pytest.approx([first[0]] * len(first), rel=1e-3)
    assert picture.read_bytes().startswith(b"<?xml")
