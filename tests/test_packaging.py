"""What is installed: declared dependencies, shipped files, commands that answer fast, the demo."""

from __future__ import annotations

import ast
import configparser
import doctest
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

import nephi_pipe
from nephi_pipe.demo import DATASET, LABELS, REFERENCE
from nephi_pipe.demo.__main__ import dice_table, structure_names
from nephi_pipe.files import write_json

ROOT = Path(__file__).parents[1]
ROOMS = {
    'nephi_pipe': ROOT / 'nephi_pipe',
    'nephi_pipe.workflows': ROOT / 'workflows',
    'nephi_pipe.bids_app': ROOT / 'bids_app',
}
IMPORT_NAMES = {'bids': 'pybids', 'PIL': 'pillow', 'yaml': 'pyyaml'}
HEAVY = ('torch', 'nipype', 'bids', 'nibabel', 'scipy', 'matplotlib', 'nilearn')


def modules() -> dict[str, Path]:
    """Every module of the package by its name when installed."""
    found = {}
    for room, folder in ROOMS.items():
        for path in sorted(folder.rglob('*.py')):
            parts = path.relative_to(folder).with_suffix('').parts
            name = '.'.join((room, *parts)).removesuffix('.__init__')
            found[name] = path
    return found


def settings() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / 'setup.cfg')
    return parser


def names_of(requirements: str) -> set[str]:
    """Project names of a list of requirements, lower case."""
    return {
        re.match(r'[\w.-]+', line).group().lower() for line in requirements.split('\n') if line
    }


def third_party_imports(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding='utf-8'))
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.split('.')[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add(node.module.split('.')[0])
    return found - set(sys.stdlib_module_names) - {'nephi_pipe'}


def test_every_import_is_declared() -> None:
    options = settings()['options']
    extras = settings()['options.extras_require']
    declared = names_of(options['install_requires'])
    for extra in ('brainmask', 'train'):
        declared |= names_of(extras[extra])
    used = {name for path in modules().values() for name in third_party_imports(path)}
    assert {'numpy', 'torch', 'nipype', 'bids'} <= used
    assert {IMPORT_NAMES.get(name, name).lower() for name in used} <= declared


def test_every_package_is_listed() -> None:
    listed = set(settings()['options']['packages'].split())
    packages = {name for name, path in modules().items() if path.name == '__init__.py'}
    assert listed == packages


def test_every_shipped_file_matches_package_data() -> None:
    patterns = settings()['options.package_data']
    folders = {path.parent: name for name, path in modules().items() if path.stem == '__init__'}
    for room in ROOMS.values():
        for path in room.rglob('*'):
            if path.is_dir() or path.suffix in ('.py', '.pyc'):
                continue
            folder = next(parent for parent in path.parents if parent in folders)
            globs = patterns.get(folders[folder], '').split(',')
            assert any(path in folder.glob(one.strip()) for one in globs if one), path


def test_every_requirement_has_a_tested_version() -> None:
    lines = (ROOT / 'constraints.txt').read_text().splitlines()
    pinned = names_of('\n'.join(line for line in lines if not line.startswith('#')))
    required = names_of(settings()['options']['install_requires'])
    extras = settings()['options.extras_require']
    for extra in ('test', 'lint', 'train'):
        required |= names_of(extras[extra])
    assert required <= pinned


def test_version_is_kept_in_one_place() -> None:
    assert re.fullmatch(r'\d+\.\d+\.\d+', nephi_pipe.__version__)
    assert settings()['metadata']['version'] == 'attr: nephi_pipe.__version__'
    newest = re.search(r'^## (\S+)', (ROOT / 'CHANGELOG.md').read_text(), re.MULTILINE).group(1)
    assert newest == nephi_pipe.__version__


@pytest.mark.parametrize('name', [n for n in modules() if not n.endswith('__main__')])
def test_doctests(name: str) -> None:
    """Also shows that the module can be imported under the name it has when installed."""
    module = importlib.import_module(name)
    result = doctest.testmod(module, optionflags=doctest.ELLIPSIS)
    assert result.failed == 0


def test_import_is_light() -> None:
    loaded = imported_by('import nephi_pipe, nephi_pipe.cli, nephi_pipe.bids_app.cli')
    assert 'nephi_pipe.cli' in loaded
    assert not loaded.intersection(HEAVY)


def test_help_of_both_commands_loads_nothing_heavy() -> None:
    for module in ('nephi_pipe.cli', 'nephi_pipe.bids_app.cli'):
        code = (
            f'from {module} import main\n'
            "try: main(['--help'])\n"
            'except SystemExit as end: assert not end.code'
        )
        assert not imported_by(code).intersection(HEAVY)


def test_builders_load_no_torch() -> None:
    assert 'torch' not in imported_by('import nephi_pipe.workflows, nephi_pipe.interfaces')


def imported_by(code: str) -> set[str]:
    """Names of the modules that are loaded after ``code``, in a fresh interpreter."""
    code += '\nimport sys; print("LOADED", *sys.modules)'
    result = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return set(result.stdout.split('LOADED')[-1].split())


def test_demo_images_and_labels_share_grids_and_structures() -> None:
    scans = sorted(DATASET.glob('sub-*/anat/*_T1w.nii.gz'))
    assert [scan.name[:6] for scan in scans] == ['sub-41', 'sub-43', 'sub-45']
    for scan in scans:
        image = nib.load(scan)
        (file,) = LABELS.glob(f'{scan.name[:6]}/anat/*_dseg.nii.gz')
        labels = nib.load(file)
        assert labels.shape == image.shape
        np.testing.assert_allclose(labels.affine, image.affine, atol=1e-4)
        for one in (image, labels):
            np.testing.assert_allclose(one.get_qform(), one.get_sform(), atol=1e-4)
            np.testing.assert_allclose(one.header.get_zooms(), 2.0, atol=1e-3)
        present = np.unique(np.asanyarray(labels.dataobj))
        assert present.tolist() == list(range(18)) == sorted(structure_names())
    assert sum(path.stat().st_size for path in DATASET.rglob('*') if path.is_file()) < 4e6


def test_demo_names_its_people_and_licence() -> None:
    description = json.loads((DATASET / 'dataset_description.json').read_text())
    assert description['License'] == 'CC0'
    assert len(description['Authors']) == 4
    assert description['SourceDatasets'][0]['DOI'] == 'doi:10.18112/openneuro.ds002748.v1.0.5'
    labels = json.loads((LABELS / 'dataset_description.json').read_text())
    assert labels['GeneratedBy'][0]['Name'] == LABELS.name
    assert (DATASET / REFERENCE).is_dir()


@pytest.mark.parametrize('folder', [DATASET, LABELS], ids=['raw', 'labels'])
def test_demo_is_valid_bids(folder: Path) -> None:
    validator = Path(sysconfig.get_path('scripts')) / 'bids-validator-deno'
    if not validator.exists():
        pytest.skip('bids-validator-deno is not installed')
    result = subprocess.run([validator, folder], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


def test_demo_table_is_the_mean_over_pairs(tmp_path: Path) -> None:
    scores = {'sub-41': (0.5, 0.75), 'sub-43': (0.25, 0.5)}
    for person, (before, after) in scores.items():
        dice = {
            when: {'mean': value, 'labels': {'7': value, '14': value / 2}}
            for when, value in (('before', before), ('after', after))
        }
        name = f'{person}_space-sub45_desc-nephi_metrics.json'
        write_json(tmp_path / person / 'anat' / name, {'dice': dice})
    lines = dice_table(tmp_path).splitlines()
    assert 'mean of 2 pairs' in lines[0]
    assert lines[1].split() == ['Thalamus', '0.375', '0.625']
    assert lines[2].split() == ['Hippocampus', '0.188', '0.312']
    assert lines[-1].split() == ['mean', '0.375', '0.625']


@pytest.mark.slow
def test_installed_wheel_works_alone(tmp_path: Path) -> None:
    """A wheel, its files and its commands, away from the source tree."""
    source = tmp_path / 'source'
    ignored = shutil.ignore_patterns('.*', '*.egg-info', 'build', 'demo_output*', '__pycache__')
    shutil.copytree(ROOT, source, ignore=ignored)
    environment = tmp_path / 'environment'
    subprocess.run([sys.executable, '-m', 'venv', environment], check=True)
    pip = [environment / 'bin' / 'python', '-m', 'pip', 'install', '--quiet', '--no-deps']
    subprocess.run([*pip, source], check=True)
    # The requirements come from the environment of the tests.
    (site,) = (environment / 'lib').glob('python*/site-packages')
    (site / 'requirements.pth').write_text(sysconfig.get_path('purelib'))
    assert not (site / 'workflows').exists() and not (site / 'bids_app').exists()
    shipped = {path.relative_to(DATASET) for path in DATASET.rglob('*') if path.is_file()}
    installed = site / 'nephi_pipe' / 'demo' / 'ds'
    assert {p.relative_to(installed) for p in installed.rglob('*') if p.is_file()} == shipped
    clean = {**os.environ, 'HOME': str(tmp_path)}
    clean.pop('PYTHONPATH', None)
    for command in ('nephi', 'nephi-pipe'):
        run = subprocess.run(
            [environment / 'bin' / command, '--help'],
            capture_output=True, text=True, cwd=tmp_path, env=clean,
        )  # fmt: skip
        assert run.returncode == 0, run.stderr
        assert f'usage: {command}' in run.stdout
    where = 'import nephi_pipe.bids_app, nephi_pipe.workflows as w; print(w.__file__)'
    run = subprocess.run(
        [environment / 'bin' / 'python', '-c', where],
        capture_output=True, text=True, cwd=tmp_path, env=clean, check=True,
    )  # fmt: skip
    assert Path(run.stdout.strip()).is_relative_to(site)


def anchors(text: str) -> set[str]:
    """What GitHub makes of the headings of a page."""
    headings = re.findall(r'^#+ (.+)$', text, re.MULTILINE)
    plain = (re.sub(r'[^\w\- ]', '', heading.lower()) for heading in headings)
    return {heading.replace(' ', '-') for heading in plain}


@pytest.mark.parametrize(
    'page',
    [
        path.relative_to(ROOT).as_posix()
        for path in [*ROOT.glob('*.md'), *ROOT.glob('docs/*.md'), *ROOT.glob('benchmarks/*.md')]
    ],
)
def test_pages_are_whole_and_their_links_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding='utf-8')
    assert not re.findall(r'^@[A-Z]+@$', text, re.MULTILINE), 'a gap that was to be filled'
    for target in re.findall(r'\]\(([^)\s]+)\)', text):
        if target.startswith('http'):
            continue
        name, _, anchor = target.partition('#')
        path = (ROOT / page).parent / name if name else ROOT / page
        assert path.exists(), target
        if anchor and path.suffix == '.md':
            assert anchor in anchors(path.read_text(encoding='utf-8')), target
