"""torch.hub's entry points, from an interpreter that knows nothing of this project."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from deit.student import create_student
from srd.files.checkpoint import load_weights

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
import json, torch
repository, checkpoint = sys.argv[1:]
own = torch.hub.load(repository, "srd_deit_tiny", source="local", checkpoint=checkpoint)
images = torch.linspace(-1, 1, 2 * 3 * 32 * 32).reshape(2, 3, 32, 32)
random = torch.hub.load(repository, "resnet18", source="local", num_classes=7)
try:
    torch.hub.load(repository, "srd_deit_small", source="local", checkpoint=checkpoint)
    told = ""
except Exception as error:
    told = str(error)
with torch.no_grad():
    found = {"logits": own(images).tolist(), "shape": random(images).shape}
print(json.dumps({"told": told, **found}))
"""


@pytest.mark.slow
def test_the_entry_points(fresh_python: Callable[..., str], deit_run: Path) -> None:
    student = create_student("tiny", 10, 32).eval()
    student.load_state_dict(load_weights(deit_run / "student.safetensors"))
    found = json.loads(fresh_python(SCRIPT, ROOT, deit_run).splitlines()[-1])
    images = torch.linspace(-1, 1, 2 * 3 * 32 * 32).reshape(2, 3, 32, 32)
    with torch.no_grad():
        expected = student(images)
    torch.testing.assert_close(torch.tensor(found["logits"]), expected, rtol=0, atol=1e-5)
    assert found["shape"] == [2, 7]
    assert "holds srd_deit_tiny, not srd_deit_small" in found["told"]


@pytest.mark.parametrize("name", ["srd_deit_tiny", "srd_deit_small", "srd_deit_base"])
def test_random_students_have_the_size_asked_for(name: str) -> None:
    with torch.device("meta"):
        model = torch.hub.load(
            str(ROOT), name, source="local", num_classes=3, image_size=48, trust_repo=True
        )
    assert model.head.out_features == 3 and model.pos_embed.shape[1] == 9 + 2 and not model.training
