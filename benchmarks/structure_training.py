"""Train the network that finds the structures of a brain, on a processor.

    python -m benchmarks.structure_training DS002748 OUT --steps 1700 --threads 2

DS002748 is the folder of ds002748 with label maps (README.md, "Data"). sub-01 to 36 are trained
on, sub-37 to 40 validated on; ``--start FILE`` goes on with a network. OUT gets
``structures.safetensors`` every hundred steps and at the end, and ``history.json``. The rate falls
to nothing within the steps that are given, so a training of another length is another training.
"""

from __future__ import annotations

import argparse
import copy
import csv
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nephi_pipe.files import write_json
from nephi_pipe.learning.structure_net import StructureNet
from nephi_pipe.training.checkpoint import load_structure_net, save_structure_net

from .structure_images import SHAPE, Person, augmented, middle, person, shares

TRAINING, VALIDATION = range(1, 37), range(37, 41)

_EVERY = 100
_WARM_UP = 30
_LAST_RATE = 0.02
_BACKGROUND = 0.1
_AVERAGE = 0.995


@dataclass(frozen=True)
class Recipe:
    """How a training goes: its length, the highest rate, the seed of all draws, and the network
    that it goes on with.
    """

    steps: int = 1700
    rate: float = 2e-3
    seed: int = 0
    start: str = ''


def train(
    people: list[Person], held_out: list[Person], names: list[str], recipe: Recipe, out: Path
) -> Path:
    """The moving average of the network that is trained; returns its file."""
    generator = torch.Generator().manual_seed(recipe.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        network = StructureNet(len(names)).to(memory_format=torch.channels_last_3d)
    if recipe.start:
        network = load_structure_net(recipe.start)[0].requires_grad_().train()
    average = copy.deepcopy(network).requires_grad_(False)
    parameters = list(network.parameters())
    optimiser = torch.optim.AdamW(parameters, recipe.rate, (0.9, 0.98), weight_decay=1e-3)
    history: list[dict[str, Any]] = []
    path = out / 'structures.safetensors'
    for step in range(1, recipe.steps + 1):
        for group in optimiser.param_groups:
            group['lr'] = recipe.rate * _rate_at(step, recipe.steps)
        chosen = people[int(torch.randint(len(people), (), generator=generator))]
        image, target = augmented(chosen, generator, len(names) + 1)
        loss, overlap = _loss(network(image), target)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        keep = min(_AVERAGE, step / (step + 10))
        for mean, value in zip(average.parameters(), parameters, strict=True):
            mean.lerp_(value.detach(), 1 - keep)
        if step % _EVERY == 0 or step == recipe.steps:
            history.append({'step': step, 'dice_training': float(overlap.mean())})
            history[-1] |= _validated(average, held_out, names)
            print(f'step {step}: Dice {history[-1]["dice"]:.4f}', flush=True)
            _save(path, average, names, recipe, step, history)
    return path


def _rate_at(step: int, steps: int) -> float:
    falling = (1 + math.cos(math.pi * step / steps)) / 2
    return min(1, step / _WARM_UP) * (falling * (1 - _LAST_RATE) + _LAST_RATE)


def _loss(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Cross entropy, background counting a tenth, and 1 - soft Dice; the latter of each."""
    weight = 1 - (1 - _BACKGROUND) * target[:, :1]
    entropy = -(target * logits.log_softmax(dim=1)).sum(dim=1, keepdim=True)
    found, sums = logits.softmax(dim=1), (0, 2, 3, 4)
    each = (found**2).sum(sums) + (target**2).sum(sums)
    overlap = ((2 * (found * target).sum(sums) + 1) / (each + 1))[1:]
    return (entropy * weight).sum() / weight.sum() + (1 - overlap).mean(), overlap.detach()


@torch.no_grad()
def _validated(network: StructureNet, people: list[Person], names: list[str]) -> dict[str, Any]:
    """Dice of the most likely structure in voxels of 2 mm, means over people."""
    rows = []
    for one in people:
        image, labels = middle(one)
        found = network(image).argmax(dim=1)
        known = shares(labels, len(names) + 1).argmax(dim=1)
        sizes = [(found == k).sum() + (known == k).sum() for k in range(1, len(names) + 1)]
        both = [((found == k) & (known == k)).sum() for k in range(1, len(names) + 1)]
        rows.append(2 * torch.stack(both) / torch.stack(sizes).clamp_min(1))
    means = torch.stack(rows).mean(dim=0)
    each = dict(zip(names, [round(float(value), 4) for value in means], strict=True))
    return {'dice': float(means.mean()), 'dice_of_each': each}


def _save(
    path: Path, network: StructureNet, names: list[str], recipe: Recipe, step: int, history: list
) -> None:
    provenance = {
        'recipe': asdict(recipe) | {'shape': list(SHAPE), 'start': Path(recipe.start).name},
        'trained_on': _named(TRAINING),
        'validated_on': _named(VALIDATION),
        'steps': step,
        'validation': history[-1],
    }
    save_structure_net(path, network, names, provenance)
    write_json(path.with_name('history.json'), history)


def _named(numbers: range) -> str:
    return f'sub-{numbers[0]:02d} to sub-{numbers[-1]:02d}'


def _people(data: Path, numbers: range) -> list[Person]:
    found = []
    for name in (f'sub-{number:02d}' for number in numbers):
        labels = data / 'derivatives' / 'meshnet' / name / 'anat'
        found.append(
            person(
                data / name / 'anat' / f'{name}_T1w.nii.gz',
                labels / f'{name}_desc-meshnet18_dseg.nii.gz',
            )
        )
    return found


def main() -> None:
    """Read the arguments and the images, train, say where the network is."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('data', type=Path)
    parser.add_argument('out', type=Path)
    parser.add_argument('--steps', type=int, default=Recipe.steps)
    parser.add_argument('--seed', type=int, default=Recipe.seed)
    parser.add_argument('--rate', type=float, default=Recipe.rate)
    parser.add_argument('--start', default='', metavar='FILE')
    parser.add_argument('--threads', type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    given.out.mkdir(parents=True, exist_ok=True)
    table = given.data / 'derivatives' / 'meshnet' / 'desc-meshnet18_dseg.tsv'
    with table.open() as stream:
        names = [row['name'] for row in csv.DictReader(stream, delimiter='\t')][1:]
    recipe = Recipe(given.steps, given.rate, given.seed, given.start)
    people, held_out = (_people(given.data, numbers) for numbers in (TRAINING, VALIDATION))
    print(train(people, held_out, names, recipe, given.out))


if __name__ == '__main__':
    main()
