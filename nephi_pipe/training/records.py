"""What a training leaves to be read: weights, tables, TensorBoard."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch

from .. import __version__
from ..files import write_json, write_text
from .checkpoint import save_model
from .config import to_toml
from .state import State

WEIGHTS, BEST = 'weights.safetensors', 'best.safetensors'
HISTORY, TABLE, CONFIG, BOARD = 'history.json', 'history.csv', 'config.toml', 'tensorboard'
"""What a training writes into its folder, beside its state."""


class Records:
    """The files of a training; all but TensorBoard's follow from its state, as of its last saving.

    Parameters
    ----------
    folder
        Where they are.
    state
        What they are about.
    """

    def __init__(self, folder: Path, state: State) -> None:
        self.folder, self.state = folder, state
        self._board: Any = None

    def __enter__(self) -> Records:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._board is not None:
            self._board.close()

    def step(self, row: dict[str, float]) -> None:
        """Losses of one step, for TensorBoard."""
        for name, value in row.items():
            self.board.add_scalar(f'step/{name}', value, self.state.step)

    def epoch(self, row: dict[str, float]) -> None:
        """Means of an epoch, and whether its weights are the best."""
        for name, value in row.items():
            self.board.add_scalar(f'epoch/{name}', value, self.state.step)
        score = _score(row)
        if score is not None and (not self.state.best or score > _score(self.state.best)):
            self.state.best = row
            save_model(self.folder / BEST, self.state.average, self.provenance(row))

    def picture(self, epoch: int, picture: np.ndarray) -> None:
        """What a validation saw, grey values (H, W) from 0 to 1."""
        self.board.add_image('validation', picture[None], self.state.step)

    def write(self) -> None:
        """Weights and tables of the state, each file as a whole."""
        history = self.state.history
        write_json(self.folder / HISTORY, history)
        write_text(self.folder / TABLE, _table(history))
        if not history:
            (self.folder / WEIGHTS).unlink(missing_ok=True)
            (self.folder / BEST).unlink(missing_ok=True)
            return
        save_model(self.folder / WEIGHTS, self.state.average, self.provenance(history[-1]))

    def write_config(self) -> None:
        """The config as TOML: ``--config`` with it is this training."""
        tables = {
            **self.state.config.as_dict(),
            'made_with': self._versions(),
            'data': self.state.data,
        }
        write_text(self.folder / CONFIG, to_toml(tables))

    def provenance(self, row: dict[str, float]) -> dict[str, Any]:
        """How weights were trained, for their header."""
        return {
            'settings': self.state.config.as_dict(),
            'last_epoch': row,
            'started_from': self.state.started_from,
            **({'coarse': self.state.coarse} if self.state.coarse else {}),
            'data': self.state.data,
            **self._versions(),
        }

    @property
    def board(self) -> Any:
        """TensorBoard's writer; what an earlier run wrote after its last state is overruled."""
        if self._board is None:
            from tensorboardX import SummaryWriter

            self._board = SummaryWriter(
                str(self.folder / BOARD), purge_step=self.state.step, flush_secs=30
            )
        return self._board

    @staticmethod
    def _versions() -> dict[str, str]:
        return {'version': __version__, 'torch': torch.__version__}


def _score(row: dict[str, float]) -> float | None:
    """What is best when it is large: the Dice, or else how little simulated landmarks miss."""
    if 'validation_dice_after' in row:
        return row['validation_dice_after']
    missed = row.get('validation_tre_mm')
    return None if missed is None else -missed


def _table(history: list[dict[str, float]]) -> str:
    names = list(dict.fromkeys(name for row in history for name in row))
    stream = io.StringIO()
    writer = csv.DictWriter(stream, names, lineterminator='\n')
    writer.writeheader()
    writer.writerows(history)
    return stream.getvalue()
