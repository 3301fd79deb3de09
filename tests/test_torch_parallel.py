"""Data parallel training and loading on torch's own engines."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torched import make

import hotloop.torch

TRAIN = """
import sys
import torch
import torch.distributed as dist
import hotloop.torch

rank, count, where, results = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
torch.set_num_threads(1)
torch.manual_seed(0)
model = torch.nn.ModuleDict({"layer": torch.nn.GRU(4, 5, 2, bidirectional=True), "cell": torch.nn.LSTMCell(10, 3)})
hotloop.torch.replace_modules(model)

class Loss(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.model = model
    def forward(self, x):
        output, _ = self.model["layer"](x)
        h, c = self.model["cell"](output[-1])
        return (h.square() + c).mean()

loss = Loss().double()
x = torch.randn(6, 8, 4, generator=torch.Generator().manual_seed(1)).double()
if count > 1:
    dist.init_process_group("gloo", init_method="file://" + where, rank=rank, world_size=count)
    loss = torch.nn.parallel.DistributedDataParallel(loss)
    x = x[:, 4 * rank : 4 * rank + 4]
for _ in range(2):
    loss.zero_grad()
    loss(x).backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.sub_(parameter.grad)
if rank == 0:
    torch.save([parameter.grad for parameter in model.parameters()], results)
if count > 1:
    dist.barrier()  # gloo ends a process whose peer is gone
    dist.destroy_process_group()
"""


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without torch.distributed")
def test_distributed(tmp_path, monkeypatch):
    """Two processes with half of the batch each have the gradients of one with all of it."""
    code = tmp_path / "train.py"
    code.write_text(TRAIN)

    def start(rank, count):
        files = str(tmp_path / "rendezvous"), str(tmp_path / f"{count}.pt")
        return subprocess.Popen(
            [sys.executable, str(code), str(rank), str(count), *files],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    processes = [start(0, 2), start(1, 2)]
    try:
        monkeypatch.setattr(sys, "argv", ["", "0", "1", "", str(tmp_path / "1.pt")])
        exec(compile(TRAIN, "train.py", "exec"), {"__name__": "train"})
        for process in processes:
            text, _ = process.communicate(timeout=120)
            assert process.returncode == 0, text
    finally:
        for process in processes:
            process.kill()
    two, one = (torch.load(tmp_path / f"{count}.pt") for count in (2, 1))
    torch.testing.assert_close(two, one)


class Encoded(torch.utils.data.Dataset):
    """Items that a layer makes in the worker that loads them."""

    def __init__(self, module, x):
        self.module, self.x = module, x

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        output, _ = self.module(self.x[index])
        return output.detach()


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.parametrize("context", ["fork", pytest.param("spawn", marks=pytest.mark.long)])
def test_workers_of_a_data_loader(context):
    """Started after kernels have run, with their threads, in this process."""
    module = make("GRU", 4, 64)
    x = torch.randn(8, 100, 4)
    torch.set_num_threads(2)
    try:
        with torch.no_grad():
            expected = torch.stack([module(item)[0] for item in x])
            module(torch.randn(200, 64, 4), threads=2)
        loader = torch.utils.data.DataLoader(
            Encoded(module, x), batch_size=4, num_workers=2, multiprocessing_context=context, timeout=60
        )
        got = torch.cat(list(loader))
    finally:
        torch.set_num_threads(1)
    assert torch.equal(got, expected)


def test_threads_that_share_a_module():
    """Inference from several Python threads, one of which changes the weights between calls."""
    from concurrent.futures import ThreadPoolExecutor

    module, x = make("LSTM", 4, 32), torch.randn(2, 3, 4)
    with torch.no_grad():
        results = {}
        for scale in (1.0, 0.5):
            module.weight_hh_l0.data.mul_(scale)
            results[scale] = module(x)[0]
            with ThreadPoolExecutor(4) as pool:
                for output in pool.map(lambda _: torch.no_grad()(module)(x)[0], range(50)):
                    assert torch.equal(output, results[scale])
    assert hotloop.torch.LSTM is type(module)


def test_share_threads_says_what_it_wants():
    with pytest.raises(TypeError, match=r"^share: expected True or False, got "):
        hotloop.torch.share_threads("yes")
