"""Files that describe the output data set as a whole."""

from __future__ import annotations

import json
import logging
import os
import platform
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from .. import __version__
from ..errors import NePhiError, OutputError
from ..files import remove_leftovers, write_text
from ..reading import MOST_JSON_BYTES, parse_json, read_text
from .lock import hold
from .reference import MNI
from .settings import Settings, write_settings

logger = logging.getLogger('nephi_pipe')

NAME = 'nephi_pipe'
BIDS_VERSION = '1.10.0'

IGNORED = ('*.html', 'figures', 'log', '*_xfm.*', '*_metrics.*', '*_jacobian.*', '*_landmarks.*')
"""What BIDS has no rule for yet. A folder's pattern must not end in a slash: the validator would
not heed it."""

OF_ALL = ('dataset_description.json', '.bidsignore', 'descriptions.tsv', 'README.md',
          'logs/CITATION.md', 'logs/*.toml', 'logs/*_graph.*')  # fmt: skip
"""Files that every run writes, one at a time."""

DESCRIPTIONS = """\
desc_id\tdescription
desc-nephi\tResampled onto the grid of the image that "space" names, by the transform in \
the "_xfm" file of the same scan; or computed from that transform
"""

README = """\
# Registrations by nephi_pipe

* `sub-XX.html`: what happened to this person's scans, with pictures; `group_*.html`: everybody.
* `sub-XX/**/*_xfm.*`: transforms. `from-A_to-B` resamples an image of A onto the grid of B, so it
  maps points of B to points of A.
* `sub-XX/**/*_space-B_desc-nephi_*`: what was resampled onto the grid of B, the map of Jacobian
  determinants, the scores, and the errors of landmarks.
* `logs/`: the settings of each run, what it said, and what to cite.
"""

MOST_WAIT_S = 120.0
"""How long a run waits for its turn at these files: hundreds of an array may start at once, and
each takes a moment."""

PACKAGES = ('torch', 'numpy', 'scipy', 'nibabel', 'nipype', 'pybids', 'h5py', 'safetensors')


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file's object; empty when it is missing or broken."""
    try:
        content = parse_json(read_text(path, 'JSON', MOST_JSON_BYTES))
    except (NePhiError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def check_output(output_dir: Path) -> None:
    """Refuse a folder that holds another data set; warn about another version's results.

    Raises
    ------
    OutputError
        The folder's ``dataset_description.json`` was not written by this tool.
    """
    path = output_dir / 'dataset_description.json'
    if not path.exists():
        return
    generator = next(iter(_generators(read_json(path))), {})
    if generator.get('Name') != NAME:
        raise OutputError(
            f'"{output_dir}" holds another data set (made by '
            f'{generator.get("Name", "an unknown tool")}); expected an empty folder or one of '
            f'{NAME}. Choose another output folder.'
        )
    if generator.get('Version') != __version__:
        logger.warning(
            '"%s" holds results of %s %s, this is %s: what is made now is mixed with them. Choose '
            'a new output folder to keep versions apart.',
            output_dir, NAME, generator.get('Version'), __version__,
        )  # fmt: skip


def _generators(description: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Who made a data set, newest first, as far as it says so in the way of BIDS."""
    found = description.get('GeneratedBy')
    found = found if isinstance(found, list) else []
    return [entry for entry in found if isinstance(entry, dict)]


def write_dataset_files(settings: Settings, run: str, started: str, method: str = '') -> None:
    """Write the description, the ignore list, the citation, and this run's settings.

    Runs with different people may do this at the same time: what another run wrote is kept.

    Parameters
    ----------
    settings, run, started
        The run's settings, its name, and when it began.
    method
        What the workflow says about itself, for the citation.
    """
    output = settings.output_dir
    with hold([output / 'logs'], ['dataset_description'], run, MOST_WAIT_S):
        for name in OF_ALL:
            remove_leftovers(output / Path(name).parent, Path(name).name)
        write_run_file(settings, run, started)
        description = output / 'dataset_description.json'
        _write_if_new(description, _as_json(_description(settings, read_json(description))))
        _write_if_new(output / '.bidsignore', _ignore_list(settings))
        _write_if_new(output / 'descriptions.tsv', DESCRIPTIONS)
        _write_if_new(output / 'README.md', README)
        _write_if_new(output / 'logs' / 'CITATION.md', citation(settings, method))


def write_run_file(settings: Settings, run: str, started: str) -> Path:
    """Write this run's settings, versions and command to ``logs/<run>.toml``."""
    facts = {
        'name': run,
        'started': started,
        'command': ' '.join(sys.argv),
        NAME: __version__,
        'python': platform.python_version(),
        'host': platform.node(),
        'machine': platform.machine(),
        **{name: _version(name) for name in PACKAGES},
    }
    return write_settings(settings.output_dir / 'logs' / f'{run}.toml', settings, facts)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _description(settings: Settings, before: Mapping[str, Any]) -> dict[str, Any]:
    source = read_json(settings.bids_dir / 'dataset_description.json')
    links = {'raw': settings.bids_dir.as_uri()}
    links.update({name: Path(p).absolute().as_uri() for name, p in settings.derivatives.items()})
    now = {'Name': NAME, 'Version': __version__, **container()}
    earlier = [
        {**entry, 'Description': 'Made some of the files.'}
        for entry in _generators(before)
        if entry.get('Version') != __version__
    ]
    linked = before.get('DatasetLinks')
    description = {
        'Name': f'{NAME} - registration of {source.get("Name") or settings.bids_dir.name}',
        'BIDSVersion': BIDS_VERSION,
        'DatasetType': 'derivative',
        'GeneratedBy': [now, *earlier],
        'SourceDatasets': [_source(settings.bids_dir, source)],
        'DatasetLinks': {**(linked if isinstance(linked, dict) else {}), **links},
        'HowToAcknowledge': 'See logs/CITATION.md.',
    }
    if source.get('License'):
        description['License'] = source['License']
    return description


def container(
    environ: Mapping[str, str] = os.environ, root: Path = Path('/')
) -> dict[str, dict[str, str]]:
    """What BIDS asks for about the container that this runs in; nothing outside of our image."""
    image = environ.get('NEPHI_IMAGE')
    if not image:
        return {}
    variables = {'APPTAINER_CONTAINER': 'apptainer', 'SINGULARITY_CONTAINER': 'singularity'}
    files = {'.dockerenv': 'docker', 'run/.containerenv': 'podman'}
    kinds = [kind for name, kind in variables.items() if environ.get(name)]
    kinds += [kind for name, kind in files.items() if (root / name).exists()]
    return {'Container': {**({'Type': kinds[0]} if kinds else {}), 'Tag': image}}


def _source(bids_dir: Path, source: Mapping[str, Any]) -> dict[str, str]:
    doi = source.get('DatasetDOI')
    return {'URL': bids_dir.as_uri(), **({'DOI': doi} if doi else {})}


def _ignore_list(settings: Settings) -> str:
    path = settings.output_dir / '.bidsignore'
    lines = path.read_text(encoding='utf-8').splitlines() if path.exists() else []
    wanted = [*IGNORED, *(['ct'] if settings.modality == 'lung' else [])]
    same = settings.work_dir == settings.output_dir
    work = settings.own_work_dir if same else settings.work_dir
    if work.is_relative_to(settings.output_dir):
        wanted.append(work.relative_to(settings.output_dir).as_posix())
    return '\n'.join([*lines, *(line for line in wanted if line not in lines)]) + '\n'


def _as_json(content: Any) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False) + '\n'


def _write_if_new(path: Path, text: str) -> None:
    if not path.exists() or path.read_text(encoding='utf-8') != text:
        write_text(path, text)


def citation(settings: Settings, method: str) -> str:
    """What was done, in sentences for a methods section, and what to cite.

    Parameters
    ----------
    settings
        The run's settings.
    method
        What the workflow says about itself.
    """
    if settings.modality == 'lung':
        within = 'an earlier or differently inflated scan of the same person'
        return _TEXT.format(scans='Chest CT scans', target=within, method=method.strip())
    template = settings.reference == MNI and settings.pairs == 'to-reference'
    target = {
        'to-reference': 'the MNI ICBM152 2009a symmetric template [5], as nilearn carries it [6]'
        if template
        else f'the scan of {settings.reference}',
        'all': 'each other',
    }.get(settings.pairs, 'the scans listed in a table of pairs')
    text = _TEXT.format(scans='T1-weighted scans', target=target, method=method.strip())
    return text + (_TEMPLATE_REFERENCES if template else '')


_TEXT = """\
# What was done, and what to cite

{scans} were registered to {target} with NePhi fields [1]. {method} The run was
organised with Nipype [2] and PyBIDS [3], following the Brain Imaging Data Structure [4].

1. Tian L, Greer H, San José Estépar R, Sengupta R, Niethammer M. NePhi: Neural Deformation Fields
   for Approximately Diffeomorphic Medical Image Registration. ECCV 2024. arXiv:2309.07322
2. Gorgolewski K, Burns CD, Madison C, et al. Nipype: a flexible, lightweight and extensible
   neuroimaging data processing framework in Python. Front Neuroinform 5:13 (2011).
   doi:10.3389/fninf.2011.00013
3. Yarkoni T, Markiewicz CJ, de la Vega A, et al. PyBIDS: Python tools for BIDS datasets.
   J Open Source Softw 4:1294 (2019). doi:10.21105/joss.01294
4. Gorgolewski KJ, Auer T, Calhoun VD, et al. The brain imaging data structure, a format for
   organizing and describing outputs of neuroimaging experiments. Sci Data 3:160044 (2016).
   doi:10.1038/sdata.2016.44
"""

_TEMPLATE_REFERENCES = """\
5. Fonov V, Evans AC, Botteron K, et al. Unbiased average age-appropriate atlases for pediatric
   studies. NeuroImage 54:313-327 (2011). doi:10.1016/j.neuroimage.2010.07.033
6. Abraham A, Pedregosa F, Eickenberg M, et al. Machine learning for neuroimaging with
   scikit-learn. Front Neuroinform 8:14 (2014). doi:10.3389/fninf.2014.00014
"""
