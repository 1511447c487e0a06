"""What is served computes what was trained."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from inference_server import repository
from inference_server.digits import HELD_OUT, held_out
from inference_server.networks import NETWORKS, FusedPerceptron


@pytest.mark.parametrize("rows", [1, 8, 500])
@pytest.mark.parametrize("name", ["digits-small", "digits-medium"])
def test_a_served_perceptron_computes_what_the_trained_one_does(name: str, rows: int) -> None:
    trained, pixels = NETWORKS[name](), held_out().pixels[:rows]
    trained.load_state_dict(load_file(HELD_OUT.parent / f"{name}.safetensors"))
    (model,) = repository.load([name], None, device=torch.device("cpu"), max_rows=1024)
    assert isinstance(model.network, FusedPerceptron)
    with torch.inference_mode():
        expected = trained(torch.tensor(pixels)).numpy()
    assert model.compute({"pixels": pixels}).outputs["logits"] == pytest.approx(expected, rel=1e-4, abs=1e-4)
