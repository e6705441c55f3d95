"""What a very large picture costs in memory."""

from __future__ import annotations

import subprocess
import sys

from tests.rounds import TIMES

FIGURE = "view.figure(), view._repr_mimebundle_()" if TIMES else ""  # of which the loading takes longest
MEASURE = f"""
import resource, torch, nbviz
from torch import nn

def used():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

net = nn.Sequential(nn.Conv2d(1, 4, 8, stride=8), nn.ReLU(), nn.Conv2d(4, 8, 3, stride=2), nn.ReLU()).eval()

def show(x):
    view = nbviz.explore(net, x)
    view.finish()
    {FIGURE}
    return view

show(torch.rand(1, 1, 64, 64)).close()  # what is loaded once
x = torch.rand(1, 1, 5000, 5000)
before = used()
view = show(x)
print((used() - before) / x.nbytes)
"""


def test_a_widget_takes_a_few_times_the_memory_of_its_picture() -> None:
    """And a process that ends with it open ends well."""
    run = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True)
    # It was 8: the model's input, its graph, the picture in colours and one reconstruction at a time are left.
    assert float(run.stdout) < 6.5
