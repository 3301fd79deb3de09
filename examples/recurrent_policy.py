"""Learn to remember by policy gradients: whole rollouts in one call with resets, against the loop over steps.

    python examples/recurrent_policy.py           three seeds
    python examples/recurrent_policy.py --quick   a few seconds: one seed, shorter corridors
    python examples/recurrent_policy.py --check   in float64: the first 20 losses are torch's to 9 digits

What it shows
-------------
A recurrent policy learns from rollouts of 128 steps in which episodes end anywhere. Its state has to be forgotten at
those places, which torch's layers cannot do inside a sequence: so libraries for reinforcement learning run the layer
step by step, with masks, in every pass over a rollout. After `hotloop.torch.replace_modules(policy)` the layer takes
`resets=`, and a pass is one call. Both ways compute the same: in float64 the losses agree to rounding.

The task cannot be solved without memory: a sign at the start of a corridor says which way to turn at its end, 10 to 20
steps later. By chance half of the turns are right.

Result
------
Three seeds, float32, one thread of a processor of 2 cores (AMD EPYC, Zen 5); CPU time of a training.

                                 torch    hotloop
    right turns, rollout 10      49.3 %    49.3 %
    right turns, rollout 30      83.7 %    83.5 %
    right turns, rollout 40     100.0 %   100.0 %
    acting, s                      1.58      1.33     1.2 x   (the task itself, and calls of one step)
    learning, s                   10.83      1.41     7.7 x
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

import hotloop.torch

LIBRARIES = ("torch", "hotloop")
State = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Settings:
    """All that a training depends on beside the seed."""

    corridor: tuple[int, int] = (10, 20)  # its shortest and longest length
    mazes: int = 32  # side by side
    steps: int = 128  # of every maze between two updates of the policy
    rollouts: int = 60
    passes: int = 8  # over a rollout
    hidden: int = 32
    learning_rate: float = 1e-2
    max_norm: float = 0.5
    discount: float = 0.98
    trace: float = 0.95  # lambda of generalised advantage estimation
    clip: float = 0.2
    entropy: float = 0.02
    dtype: torch.dtype = torch.float32


# The task

FORWARD, LEFT, RIGHT = range(3)


class TMazes:
    """Corridors that end in a junction. At its start, and only there, one sees a sign: which way to turn at its end.

    The right turn is worth 1, the wrong one -1, and either ends the episode; walking into a wall costs 0.1. What one
    sees: the sign (left, right), the corridor, the junction.
    """

    def __init__(self, settings: Settings, generator: torch.Generator) -> None:
        self.settings, self.generator = settings, generator
        self.place, self.length, self.sign = torch.zeros(3, settings.mazes, dtype=torch.int64)
        self.begin(torch.ones(settings.mazes, dtype=torch.bool))

    def begin(self, which: torch.Tensor) -> None:
        """Begin new episodes in some mazes."""
        shortest, longest = self.settings.corridor
        length = torch.randint(shortest, longest + 1, which.shape, generator=self.generator)
        sign = torch.randint(LEFT, RIGHT + 1, which.shape, generator=self.generator)
        self.place = torch.where(which, 0, self.place)
        self.length = torch.where(which, length, self.length)
        self.sign = torch.where(which, sign, self.sign)

    def seen(self) -> torch.Tensor:
        """Return what is seen, (mazes, 4)."""
        start, junction = self.place == 0, self.place == self.length
        features = start & (self.sign == LEFT), start & (self.sign == RIGHT), ~start & ~junction, junction
        return torch.stack(features, 1).to(self.settings.dtype)

    def act(self, action: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Do one step; return the rewards, and where a new episode has begun."""
        junction, forward = self.place == self.length, action == FORWARD
        over = junction & ~forward
        reward = torch.where(junction == forward, -0.1, 0.0) + torch.where(over, 1.0, 0.0) * (
            2.0 * (action == self.sign) - 1
        )
        self.place += forward & ~junction
        self.begin(over)
        return reward.to(self.settings.dtype), over


# The policy


class Policy(torch.nn.Module):
    """An LSTM with two read-outs: the scores of the actions, and the value of the situation."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.rnn = torch.nn.LSTM(4, settings.hidden)
        self.actor, self.critic = torch.nn.Linear(settings.hidden, 3), torch.nn.Linear(settings.hidden, 1)

    def forward(
        self, seen: torch.Tensor, starts: torch.Tensor, state: State
    ) -> tuple[torch.Tensor, torch.Tensor, State]:
        """Go on from a state, forgetting it where an episode starts: seen (steps, mazes, 4), starts (steps, mazes)."""
        if isinstance(self.rnn, hotloop.torch.LSTM):
            output, state = self.rnn(seen, state, resets=starts)
        else:  # torch's layer cannot forget in the middle of a sequence; steps as torch.nn.LSTMCell does them
            h, c, weights, outputs = state[0][0], state[1][0], list(self.rnn.parameters()), []
            for x, start in zip(seen, starts, strict=True):
                keep = (~start).to(x.dtype).unsqueeze(1)
                h, c = torch.lstm_cell(x, (h * keep, c * keep), *weights)
                outputs.append(h)
            output, state = torch.stack(outputs), (h.unsqueeze(0), c.unsqueeze(0))
        return self.actor(output).log_softmax(2), self.critic(output).squeeze(2), state


# Learning


@dataclass(frozen=True)
class Rollout:
    """Some steps of every maze, (steps, mazes): what was seen and done, and how good it was."""

    state: State  # before the first step
    seen: torch.Tensor
    starts: torch.Tensor
    action: torch.Tensor
    log_p: torch.Tensor
    advantage: torch.Tensor
    returns: torch.Tensor


class Learner:
    """Proximal policy optimisation (Schulman et al., 2017): acts for some steps, then learns from them."""

    def __init__(self, library: str, settings: Settings, seed: int) -> None:
        torch.manual_seed(seed)
        self.settings, self.generator = settings, torch.Generator().manual_seed(seed)
        self.policy = Policy(settings).to(settings.dtype)
        if library == "hotloop":
            hotloop.torch.replace_modules(self.policy)  # the one line
        self.adam = torch.optim.Adam(self.policy.parameters(), lr=settings.learning_rate, fused=True)
        self.mazes = TMazes(settings, self.generator)
        self.starts = torch.ones(settings.mazes, dtype=torch.bool)
        zero = torch.zeros(1, settings.mazes, settings.hidden, dtype=settings.dtype)
        self.state: State = (zero, zero)
        self.losses: list[float] = []
        self.success: list[float] = []  # of the episodes that ended in each rollout
        self.acting = self.learning = 0.0  # seconds

    @torch.no_grad()
    def act(self) -> Rollout:
        """Let the policy walk. Episodes end where they end, most of them in the middle of the rollout."""
        before, steps = self.state, []
        for _ in range(self.settings.steps):
            seen, starts = self.mazes.seen(), self.starts
            log_p, value, self.state = self.policy(seen.unsqueeze(0), starts.unsqueeze(0), self.state)
            action = torch.multinomial(log_p[0].exp(), 1, generator=self.generator)
            reward, self.starts = self.mazes.act(action[:, 0])
            steps.append((seen, starts, action[:, 0], log_p[0].gather(1, action)[:, 0], value[0], reward, self.starts))
        seen, starts, action, log_p, value, reward, over = (torch.stack(column) for column in zip(*steps, strict=True))
        self.success.append((reward[over] > 0).double().mean().item() if over.any() else 0.0)

        _, after, _ = self.policy(self.mazes.seen().unsqueeze(0), self.starts.unsqueeze(0), self.state)
        advantage, going, following = torch.zeros_like(value), 0.0, after[0]
        for k in reversed(range(len(value))):
            on = (~over[k]).to(value.dtype) * self.settings.discount
            going = reward[k] + on * following - value[k] + on * self.settings.trace * going
            advantage[k], following = going, value[k]
        return Rollout(before, seen, starts, action, log_p, advantage, advantage + value)

    def learn(self, rollout: Rollout) -> None:
        """Pass over a rollout some times, each time running the policy over all of it, forward and backward."""
        advantage = (rollout.advantage - rollout.advantage.mean()) / rollout.advantage.std()
        for _ in range(self.settings.passes):
            log_p, value, _ = self.policy(rollout.seen, rollout.starts, rollout.state)
            ratio = (log_p.gather(2, rollout.action.unsqueeze(2)).squeeze(2) - rollout.log_p).exp()
            clipped = ratio.clamp(1 - self.settings.clip, 1 + self.settings.clip)
            entropy = -(log_p.exp() * log_p).sum(2).mean()
            loss = -torch.minimum(ratio * advantage, clipped * advantage).mean() - self.settings.entropy * entropy
            loss = loss + 0.5 * (value - rollout.returns).square().mean()
            self.adam.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.settings.max_norm)
            self.adam.step()
            self.losses.append(loss.item())


def train(library: str, settings: Settings, seed: int) -> Learner:
    """Train a new policy. All else follows from the seed, not from what runs the policy."""
    learner = Learner(library, settings, seed)
    for _ in range(settings.rollouts):
        times = [time.perf_counter()]
        rollout = learner.act()
        times.append(time.perf_counter())
        learner.learn(rollout)
        times.append(time.perf_counter())
        learner.acting += times[1] - times[0]
        learner.learning += times[2] - times[1]
    return learner


def compare(settings: Settings, seed: int, losses: int = 20) -> float:
    """Return the largest relative difference between torch's first losses and hotloop's, in float64."""
    exact = replace(settings, dtype=torch.float64, rollouts=-(-losses // settings.passes))
    theirs, ours = (train(library, exact, seed).losses[:losses] for library in LIBRARIES)
    return max(abs(a - b) / abs(a) for a, b in zip(theirs, ours, strict=True))


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description="A recurrent policy, on torch step by step and on hotloop with resets."
    )
    parser.add_argument("--seeds", type=int, help="train N times (default 3)", metavar="N")
    parser.add_argument("--rollouts", type=int, help=f"default {Settings.rollouts}")
    parser.add_argument("--threads", type=int, default=1, help="default 1: batches are small")
    parser.add_argument("--quick", action="store_true", help="1 seed, 20 rollouts, corridors of 3 to 6 steps")
    parser.add_argument("--check", action="store_true", help="compare the first 20 losses in float64, and stop")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    settings = Settings(corridor=(3, 6), steps=64, rollouts=20) if args.quick else Settings()
    settings = replace(settings, rollouts=args.rollouts or settings.rollouts)
    if args.check:
        difference = compare(settings, seed=0)
        print(f"the first 20 losses in float64 differ by {difference:.1e} at most, relatively")
        raise SystemExit(difference > 1e-9)

    print(f"corridors of {settings.corridor[0]} to {settings.corridor[1]} steps, {settings.mazes} mazes, "
          f"rollouts of {settings.steps} steps; {args.threads} thread(s)")  # fmt: skip
    seeds = args.seeds or (1 if args.quick else 3)
    runs = {library: [train(library, settings, seed) for seed in range(seeds)] for library in LIBRARIES}
    print(f"{'right turns, mean of the seeds':<40}{'torch':>10}{'hotloop':>10}")
    for k in sorted({0, *range(9, settings.rollouts, 10), settings.rollouts - 1}):
        means = (sum(run.success[k] for run in run_of_seeds) / seeds for run_of_seeds in runs.values())
        print(f"    rollout {k + 1:<28}" + "".join(f"{mean:10.1%}" for mean in means))
    for name in ("acting", "learning"):
        seconds = [sum(getattr(run, name) for run in run_of_seeds) / seeds for run_of_seeds in runs.values()]
        print(
            f"{name + ', s a training':<40}"
            + "".join(f"{s:10.2f}" for s in seconds)
            + f"{seconds[0] / seconds[1]:8.1f} x"
        )


if __name__ == "__main__":
    main()
