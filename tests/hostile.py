"""What opens files that others wrote, tried with damaged and malicious ones.

``python hostile.py GROUP EXAMPLES`` does it in a process of its own whose memory is limited, since
a library that crashes, hangs or fills the memory would take the test run along. Each line it
prints is JSON: a name, and what went wrong ('' for nothing).
"""

from __future__ import annotations

import faulthandler
import gzip
import json
import re
import resource
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from hostile_makers import (
    make_chart,
    make_composite,
    make_field,
    make_filters,
    make_itk_matlab,
    make_itk_text,
    make_metrics,
    make_mgh,
    make_names,
    make_nifti,
    make_nifti2,
    make_pairs,
    make_picture,
    make_points,
    make_thresholds,
    make_toml,
    make_vectors,
    make_weights,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nephi_pipe.errors import InputDataError, NePhiError, NoInputError, UsageError

ROOM_BYTES = 700 << 20
"""What a door may take beyond the libraries themselves; each file here is below a megabyte."""

HANGS_AFTER_S = 60
_NO_MEMORY = re.compile("memory|(can't|cannot|unable to) allocate", re.IGNORECASE)
REFUSED = (InputDataError, NoInputError, UsageError)


@dataclass(frozen=True)
class Door:
    """A kind of file: its name, how a valid one is made, and what opens it."""

    name: str
    make: Callable[[Path], object]
    load: Callable[[Path], object]


def load_image(path: Path) -> None:
    """Every way in which an image is opened."""
    from nephi_pipe.apply import read_grid
    from nephi_pipe.images import load_image, load_labels, load_mask

    load_image(path)
    for load in (load_labels, load_mask):
        with suppress(REFUSED):
            load(path)
    read_grid(path)


def load_transform(path: Path) -> None:
    from nephi_pipe.describe import describe
    from nephi_pipe.transforms import read_transform

    describe(path)
    with np.errstate(all='ignore'):
        read_transform(path).map_points(np.zeros((3, 3)))


def load_field(path: Path) -> None:
    from nephi_pipe.describe import describe
    from nephi_pipe.registration import load_registration

    describe(path)
    load_registration(path).warp_points(np.zeros((3, 3)))


def load_weights(path: Path) -> None:
    from nephi_pipe.describe import describe
    from nephi_pipe.training.checkpoint import load_model

    describe(path)
    load_model(path)


def load_points(path: Path) -> None:
    from nephi_pipe.landmarks import read_points

    read_points(path)


def load_pairs(path: Path) -> None:
    from nephi_pipe.bids_app.pairs import _read_table

    for moving, fixed in _read_table(path):
        assert moving and fixed


def load_names(path: Path) -> None:
    from nephi_pipe.reading import read_label_names

    assert all(type(label) is int for label in read_label_names(path))


def load_filters(path: Path) -> None:
    from nephi_pipe.bids_app.filters import read_filters

    read_filters(path, ['t1w', 'dseg', 'mask'])


def load_thresholds(path: Path) -> None:
    from nephi_pipe.bids_app.group_flags import load_thresholds

    load_thresholds(path)


def load_toml(path: Path) -> None:
    from nephi_pipe.bids_app.settings import make_settings

    make_settings({'bids_dir': Path('/ds'), 'output_dir': Path('/out')}, path)


def load_metrics(path: Path) -> None:
    """Read by the group level and by a person's page, and shown."""
    from report_data import Page

    from nephi_pipe.bids_app.group_flags import judge, load_thresholds
    from nephi_pipe.bids_app.group_page import group_page
    from nephi_pipe.bids_app.group_table import read_values, table_row, to_tsv
    from nephi_pipe.bids_app.stored import read_pair
    from nephi_pipe.report import pair_section

    pair = read_pair(path)
    provenance = pair.metrics.get('provenance')
    Page(
        pair_section(
            [],
            pair.metrics,
            title=pair.title,
            facts=[('Moving', pair.image_name('moving'))],
            provenance=provenance if isinstance(provenance, dict) else None,
            seconds=pair.metrics.get('seconds'),
        )
    )
    values, limits = [read_values(pair)], load_thresholds()
    reasons = judge(values, limits)
    to_tsv([table_row(pair, values[0], reasons[0], 'x.json')])
    Page(group_page([pair], values, reasons, [None], limits, []))


def load_figure(path: Path) -> None:
    from nephi_pipe.report import load_figure
    from nephi_pipe.report_html import figure_list

    figure_list([load_figure(path)])


LIGHT = [
    Door('x.nii', make_nifti, load_image),
    Door('x.nii.gz', make_nifti, load_image),
    Door('2.nii', make_nifti2, load_image),
    Door('x.mgh', make_mgh, load_image),
    Door('x.mgz', make_mgh, load_image),
    Door('vectors.nii.gz', make_vectors, load_transform),
    Door('x.h5', make_composite, load_transform),
    Door('x.txt', make_itk_text, load_transform),
    Door('x.mat', make_itk_matlab, load_transform),
    Door('points.tsv', make_points, load_points),
    Door('pairs.tsv', make_pairs, load_pairs),
    Door('names.tsv', make_names, load_names),
    Door('filters.json', make_filters, load_filters),
    Door('thresholds.json', make_thresholds, load_thresholds),
    Door('settings.toml', make_toml, load_toml),
    Door('sub-1_space-b_desc-nephi_metrics.json', make_metrics, load_metrics),
    Door('chart.svg', make_chart, load_figure),
    Door('picture.png', make_picture, load_figure),
]
HEAVY = [
    Door('field.safetensors', make_field, load_field),
    Door('weights.safetensors', make_weights, load_weights),
]

_PLACES = st.one_of(st.integers(0, 400), st.integers(0, 1 << 17))
_BYTES = st.one_of(
    st.binary(min_size=1, max_size=8),
    st.sampled_from([b'\0' * 4, b'\xff' * 8, b'\x7f', b'[' * 2000, b'"', b'\t', b'9' * 5000,
                     b'nan', b'-1', b'1e999', b'null', b'\xf0\x9f\x92\xa9', b'\xed\xa0\x80']),
)  # fmt: skip
CHANGES = st.lists(
    st.tuples(st.sampled_from(['set', 'insert', 'cut', 'end', 'repeat']), _PLACES, _BYTES),
    min_size=1,
    max_size=4,
)


def changed(content: bytes, changes: list[tuple[str, int, bytes]]) -> bytes:
    """Valid content, damaged."""
    for kind, place, new in changes:
        at = place % (len(content) + 1)
        if kind == 'set':
            content = content[:at] + new + content[at + len(new) :]
        elif kind == 'insert':
            content = content[:at] + new + content[at:]
        elif kind == 'cut':
            content = content[:at] + content[at + len(new) :]
        elif kind == 'end':
            content = content[:at]
        else:
            content = content[:at] + content[max(0, at - 64) : at] * 3 + content[at:]
    return content


def refusal(load: Callable[[Path], object], path: Path) -> NePhiError | None:
    """The error with which a file is refused, None where it is read; everything else is raised."""
    try:
        load(path)
    except REFUSED as error:
        check_sentence(error)
        return error
    return None


def check_sentence(error: NePhiError) -> None:
    text = str(error)
    assert text.isprintable() and len(text) < 5000 and text.endswith('.'), text
    while error is not None:  # memory that ran out, hidden in a reason
        assert not isinstance(error, MemoryError) and not _NO_MEMORY.search(str(error)), repr(
            error
        )
        error = error.__cause__


def fuzz(door: Door, folder: Path, examples: int) -> None:
    """Damage a valid file in many ways, the inside of a compressed one too."""
    path = folder / door.name
    door.make(path)
    assert refusal(door.load, path) is None
    valid = path.read_bytes()
    packed = path.suffix in ('.gz', '.mgz')
    inside = gzip.decompress(valid) if packed else b''

    @settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(CHANGES, st.booleans() if packed else st.just(False))
    def try_one(changes: list[tuple[str, int, bytes]], inner: bool) -> None:
        bad = changed(inside if inner else valid, changes)
        path.write_bytes(gzip.compress(bad, 1) if inner else bad)
        signal.alarm(HANGS_AFTER_S)
        refusal(door.load, path)

    try_one()


def main(group: str, examples: int) -> None:
    """Try a group of doors; see the module's text."""
    import hostile_fields  # noqa: F401  (adds its cases)
    import hostile_files

    doors = {'light': LIGHT, 'heavy': HEAVY}[group]
    if group == 'heavy':
        import torch  # noqa: F401  (its address space is none of ours)
    with tempfile.TemporaryDirectory() as name:
        for door in doors:  # what a door loads when it is used first is none of it either
            (folder := Path(name) / f'{door.name}.d').mkdir()
            door.make(folder / door.name)
            refusal(door.load, folder / door.name)
        pages = int(Path('/proc/self/statm').read_text().split()[0])
        limit = pages * resource.getpagesize() + ROOM_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        faulthandler.register(signal.SIGALRM, chain=True)
        cases = [(door.name, lambda f, door=door: fuzz(door, f, examples)) for door in doors]
        cases += hostile_files.cases(group)
        for number, (case, run) in enumerate(cases):
            (folder := Path(name) / str(number)).mkdir()
            print(json.dumps(['begin', case]), flush=True)
            signal.alarm(HANGS_AFTER_S)
            try:
                run(folder)
                problem = ''
            except BaseException:
                problem = traceback.format_exc()[-6000:]
            print(json.dumps([case, problem]), flush=True)
    signal.alarm(0)


if __name__ == '__main__':
    sys.path.insert(0, str(Path(__file__).parent))
    # This very file is imported by its cases.
    import hostile

    hostile.main(sys.argv[1], int(sys.argv[2]))
