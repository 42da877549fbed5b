"""One pair's report: the figures, and the page that shows them.

``pair_figures`` draws and writes files, each of which carries its own title and
caption; ``pair_section`` turns such files and the metrics into HTML, so a page
can be made again later from what lies on disk. ``write_pair_report`` does both.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .errors import InputDataError
from .files import make_folder, write_text
from .presets.views import View
from .reading import existing_file
from .report_charts import curve_chart, dice_chart, landmark_chart, read_chart_note
from .report_drawing import read_note
from .report_html import ORIENTATION, Figure, escape, figure_list, flip, page, section, table
from .report_numbers import headline, key_figures, per_structure, provenance_rows
from .report_pictures import DEFAULT, PairImages, draw_pictures


def pair_figures(
    images: PairImages,
    folder: str | os.PathLike,
    stem: str,
    *,
    history: Sequence[Mapping[str, Any]] | None = None,
    metrics: Mapping[str, Any] | None = None,
    label_names: Mapping[int, str] | None = None,
    landmark_errors: Mapping[str, Sequence[float]] | None = None,
    view: View = DEFAULT,
    suffix: str = 'T1w',
) -> list[Figure]:
    """Draw everything that the inputs allow and write ``<stem>_desc-<key>_<suffix>.png|svg``.

    Parameters
    ----------
    images
        Images, maps and labels of the pair.
    folder, stem, suffix
        Where the files go and how their names begin and end.
    history
        One mapping a step of the optimisation: step, level, similarity, regularity.
    metrics
        As ``nephi_pipe.metrics.evaluate`` returns them.
    label_names
        Names of the structures.
    landmark_errors
        Of each landmark ``before`` and ``after``, mm.
    view
        How pairs of this kind are shown.

    Returns
    -------
    list of Figure
        Keys among fixed, before, after, outline, labelsbefore, labelsafter, checkerboard,
        grid, motion, jacobian, landmarksbefore, landmarksafter, dice, landmarks, curve, in this
        order.
    """
    folder = make_folder(folder)

    def where(key: str, kind: str = 'png') -> Path:
        return folder / f'{stem}_desc-{key}_{suffix}.{kind}'

    figures = []
    for key, picture, title, caption in draw_pictures(images, view):
        path = picture.save(where(key), key, title, caption)
        figures.append(Figure(key, title, caption, path, tuple(picture.blocks)))
    errors = landmark_errors or {}
    charts = {
        'dice': dice_chart(metrics or {}, label_names),
        'landmarks': landmark_chart(errors.get('before', ()), errors.get('after', ())),
        'curve': curve_chart(history or []),
    }
    for key, svg in charts.items():
        if svg:
            figures.append(load_figure(write_text(where(key, 'svg'), svg)))
    return figures


def load_figure(path: str | os.PathLike) -> Figure:
    """A figure that ``pair_figures`` wrote, from its file alone.

    Raises
    ------
    InputDataError
        The file cannot be read, or was not written by ``pair_figures``.
    """
    path = Path(path)
    try:
        existing_file(path, 'a figure')
        note = read_chart_note(path) if path.suffix == '.svg' else read_note(path)
        blocks = tuple(_block(block, *note['size']) for block in note.get('blocks', ()))
        return Figure(str(note['key']), str(note['title']), str(note['caption']), path, blocks)
    except MemoryError:
        raise
    except Exception as error:  # parsers of foreign bytes stumble in many ways
        raise InputDataError(
            f'"{path}" is not a figure of a report (no title and caption inside); expected a PNG '
            'or SVG written by this tool. Remove it or run the pair again.'
        ) from error


def _block(block: Mapping[str, Any], width: int, height: int) -> dict[str, Any]:
    """A block of a picture with its parts checked."""
    left, top, right, bottom = (int(edge) for edge in block['box'])
    if not (0 <= left < right <= width and 0 <= top < bottom <= height):
        raise ValueError('a block of the picture lies beyond its edges')
    places = [float(place) for place in block['at_mm']]
    return {'name': str(block['name']), 'box': [left, top, right, bottom], 'at_mm': places}


def pair_section(
    figures: Sequence[Figure],
    metrics: Mapping[str, Any] | None = None,
    *,
    title: str,
    facts: Sequence[tuple[str, Any]] = (),
    provenance: Mapping[str, Any] | None = None,
    seconds: Mapping[str, float] | float | None = None,
    label_names: Mapping[int, str] | None = None,
    anchor: str = 'pair',
) -> str:
    """The HTML of one pair; everything shown is escaped, pictures are embedded.

    Parameters
    ----------
    figures
        From ``pair_figures`` or ``load_figure``.
    metrics
        As ``nephi_pipe.metrics.evaluate`` returns them.
    title, anchor
        Heading and id of the section.
    facts
        Names and values shown below the heading, such as the two files.
    provenance
        Seed, device, weights, version, command and so on, nested as it likes.
    seconds
        Time of each stage, or in total.
    label_names
        Names of the structures.
    """
    metrics = metrics or {}
    by_key = {figure.key: figure for figure in figures}

    def have(*keys: str) -> list[Figure]:
        return [by_key[key] for key in keys if key in by_key]

    structures = per_structure(metrics, label_names)
    stages = ('', 'before (affine)', 'after (NePhi)')
    parts = [
        flip(have('fixed', 'before', 'after'), have('outline'), 'Image shown', 'Before and after'),
        flip(have('labelsbefore', 'labelsafter'), [], 'Labels shown', 'Structures'),
        flip(have('landmarksbefore', 'landmarksafter'), [], 'Landmarks shown', 'Landmarks'),
        figure_list(have('checkerboard', 'grid', 'motion', 'jacobian')),
        f'<p class="hint">{escape(ORIENTATION)}</p>\n' if figures else '',
        figure_list(have('dice', 'landmarks', 'curve'), kind='charts'),
        table('Key figures', stages, key_figures(metrics, seconds)),
        table('Each structure', ('Structure', *structures.columns), structures.rows, folded=True),
        table('Provenance', ('', ''), provenance_rows(provenance or {})),
    ]
    return section(title, anchor, facts, headline(metrics, seconds), ''.join(parts))


def write_pair_report(
    path: str | os.PathLike,
    images: PairImages,
    *,
    metrics: Mapping[str, Any] | None = None,
    history: Sequence[Mapping[str, Any]] | None = None,
    provenance: Mapping[str, Any] | None = None,
    seconds: Mapping[str, float] | float | None = None,
    label_names: Mapping[int, str] | None = None,
    landmark_errors: Mapping[str, Sequence[float]] | None = None,
    view: View = DEFAULT,
    moving_name: str = 'moving',
    fixed_name: str = 'fixed',
    figures_folder: str | os.PathLike | None = None,
) -> Path:
    """Write one self-contained HTML page about a pair.

    Parameters
    ----------
    path
        The page.
    figures_folder
        Where the figures are kept as files too; by default only the page is kept.

    The others are those of ``pair_figures`` and ``pair_section``.
    """
    with tempfile.TemporaryDirectory(prefix='nephi-report-') as scratch:
        figures = pair_figures(
            images,
            figures_folder or scratch,
            Path(path).stem,
            history=history,
            metrics=metrics,
            label_names=label_names,
            landmark_errors=landmark_errors,
            view=view,
            suffix='figure',
        )
        title = f'{moving_name} → {fixed_name}'
        body = pair_section(
            figures,
            metrics,
            title='Summary',
            provenance=provenance,
            seconds=seconds,
            label_names=label_names,
        )
    return write_text(path, page(title, 'Registration of a pair', body))
