"""The examples of hotloop.torch run, learn, and train as torch does."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import hotloop.torch

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(autouse=True)
def one_torch_thread():
    """On batches this small two threads are slower, and on a busy machine many times slower."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def load(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look themselves up there
    try:
        spec.loader.exec_module(module)
        yield module
    finally:
        del sys.modules[name]


@pytest.fixture(scope="module")
def vowels():
    yield from load("torch_japanese_vowels")


@pytest.fixture(scope="module")
def char_lm():
    yield from load("char_lm")


@pytest.fixture(scope="module")
def policy():
    yield from load("recurrent_policy")


def median(values):
    return sorted(values)[len(values) // 2]


# The Japanese vowels


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_first_losses_of_the_vowels_are_torchs(vowels, cell):
    settings = vowels.Settings(cell=cell)
    assert vowels.compare(vowels.load()[0], settings, seed=1, steps=20) < 1e-9


def test_vowels_learn(vowels):
    data, test = vowels.load()
    training = vowels.train("hotloop", data, vowels.Settings(cell="gru", epochs=4), seed=0)
    assert type(training.model.rnn) is hotloop.torch.GRU
    assert len(training.losses) == 4 * 34
    assert vowels.accuracy(training.model, test) > 0.85  # by chance 0.11


def test_vowels_command(vowels, capsys):
    vowels.main(["--quick", "--epochs", "2"])
    printed = capsys.readouterr().out
    rows = [line.split() for line in printed.splitlines() if "loss in epoch  1" in line]
    assert len(rows) == 2
    for row in rows:
        assert float(row[-1]) == pytest.approx(float(row[-2]), rel=1e-4)


@pytest.mark.long
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_vowels_end_where_torch_does(vowels, cell):
    data, test = vowels.load()
    settings = vowels.Settings(cell=cell, dtype=torch.float64)
    ends, accuracies = {}, {}
    for library in vowels.LIBRARIES:
        runs = [vowels.train(library, data, settings, seed) for seed in range(5)]
        ends[library] = median([sum(r.losses[-5 * 34 :]) / (5 * 34) for r in runs])
        accuracies[library] = median([vowels.accuracy(r.model, test) for r in runs])
    assert ends["hotloop"] == pytest.approx(ends["torch"], rel=0.05)
    assert accuracies["hotloop"] == pytest.approx(accuracies["torch"], abs=0.01)
    assert accuracies["hotloop"] > 0.97


# The character model


def test_the_text_is_the_same_every_time(char_lm):
    text = char_lm.gather(40_000)
    assert text == char_lm.gather(40_000)
    assert len(text) == 40_000
    assert text.isascii()
    assert text == char_lm.gather(60_000)[:40_000]


def test_pieces_cover_the_text_in_order(char_lm):
    settings = char_lm.Settings(steps=7, batch=3)
    x, y = (torch.cat(column) for column in zip(*char_lm.pieces(torch.arange(100), settings), strict=True))
    assert x.shape == (33, 3)
    assert x.t().flatten().tolist() == list(range(99))
    assert torch.equal(y, x + 1)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_first_losses_of_the_character_model_are_torchs(char_lm, cell):
    settings = char_lm.Settings(cell=cell, hidden=64, steps=32, batch=16, text=60_000)
    assert char_lm.compare(char_lm.Text(settings.text), settings, seed=1, updates=20) < 1e-9


def test_character_model_learns(char_lm):
    settings = char_lm.Settings(hidden=64, steps=32, batch=16, text=60_000, epochs=1)
    text = char_lm.Text(settings.text)
    training = char_lm.train("hotloop", text, settings, seed=0)
    assert type(training.model.rnn) is hotloop.torch.LSTM
    bits = char_lm.bits_per_character(training.model, text.held_out, settings)
    assert bits < 4.6  # log2 of the number of characters is 6.5, and those at random in their frequencies have 4.9
    assert len(char_lm.write(training.model, text, 20)) == 20


def test_character_model_command(char_lm, capsys):
    char_lm.main(["--quick", "--threads", "1"])
    printed = capsys.readouterr().out
    first = next(line.split() for line in printed.splitlines() if line.split()[:1] == ["1"])
    assert first[1] == first[2]
    bits = next(line.split()[-2:] for line in printed.splitlines() if "bits per character" in line)
    assert float(bits[0]) == pytest.approx(float(bits[1]), rel=0.02)


@pytest.mark.long
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_character_model_ends_where_torch_does(char_lm, cell):
    settings = char_lm.Settings(cell=cell, hidden=128, text=300_000, epochs=2, dtype=torch.float64)
    text = char_lm.Text(settings.text)
    ends = {}
    for library in ("torch", "hotloop"):
        models = [char_lm.train(library, text, settings, seed).model for seed in range(3)]
        ends[library] = median([char_lm.bits_per_character(model, text.held_out, settings) for model in models])
    assert ends["hotloop"] == pytest.approx(ends["torch"], rel=0.01)
    assert ends["hotloop"] < 4


# The policy


def test_mazes(policy):
    settings = policy.Settings(corridor=(2, 2), mazes=4)
    mazes = policy.TMazes(settings, torch.Generator().manual_seed(0))
    mazes.sign[:] = torch.tensor([policy.LEFT, policy.RIGHT, policy.LEFT, policy.RIGHT])
    assert mazes.seen().tolist() == [[1, 0, 0, 0], [0, 1, 0, 0]] * 2
    actions = torch.tensor([[0, 0, 1, 0], [0, 0, 0, 0], [1, 1, 0, 0]])
    rewards, overs = zip(*[mazes.act(action) for action in actions], strict=True)
    assert torch.equal(torch.stack(rewards), torch.tensor([[0, 0, -0.1, 0], [0, 0, 0, 0], [1, -1, 0, -0.1]]))
    assert torch.stack(overs).tolist() == [[False] * 4, [False] * 4, [True, True, False, False]]
    assert mazes.seen()[:2, :2].sum() == 2  # where an episode ended the next one shows its sign
    assert mazes.seen()[2:].tolist() == [[0, 0, 0, 1]] * 2


def test_first_losses_of_the_policy_are_torchs(policy):
    settings = policy.Settings(corridor=(3, 6), steps=48, mazes=16)
    assert policy.compare(settings, seed=1, losses=20) < 1e-9


def test_episodes_end_in_the_middle_and_resets_are_the_loop(policy):
    settings = policy.Settings(corridor=(3, 6), steps=64, dtype=torch.float64)
    learner = policy.Learner("hotloop", settings, seed=0)
    for _ in range(2):
        rollout = learner.act()
    assert type(learner.policy.rnn) is hotloop.torch.LSTM
    assert rollout.starts[1:].any(0).sum() > 16
    assert rollout.state[0].abs().sum() > 0
    ours = learner.policy(rollout.seen, rollout.starts, rollout.state)
    hotloop.torch.restore_modules(learner.policy)
    theirs = learner.policy(rollout.seen, rollout.starts, rollout.state)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_policy_learns_to_remember(policy):
    settings = replace(policy.Settings(), corridor=(3, 6), steps=64, rollouts=30)
    learner = policy.train("hotloop", settings, seed=0)
    assert learner.success[0] < 0.7  # by chance 0.5
    assert median(learner.success[-5:]) > 0.9


@pytest.mark.parametrize("example", ["vowels", "char_lm", "policy"])
def test_check_says_what_differs(example, request, monkeypatch, capsys):
    example = request.getfixturevalue(example)
    monkeypatch.setattr(example, "compare", lambda *args, **options: 1e-8)
    with pytest.raises(SystemExit) as stopped:
        example.main(["--quick", "--check"])
    assert int(stopped.value.code) == 1
    assert "differ by 1.0e-08" in capsys.readouterr().out


def test_policy_command(policy, capsys):
    policy.main(["--quick", "--rollouts", "3"])
    printed = capsys.readouterr().out
    first = next(line.split() for line in printed.splitlines() if "rollout 1 " in line)
    assert first[-1] == first[-2]
    assert "learning, s a training" in printed


@pytest.mark.long
def test_policies_end_where_torch_does(policy):
    settings = policy.Settings(dtype=torch.float64)
    for library in policy.LIBRARIES:
        ends = [median(policy.train(library, settings, seed).success[-10:]) for seed in range(3)]
        assert median(ends) > 0.95, library
