"""Which scans, masks, label maps and landmarks a data set holds, found by BIDS entities."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import InputDataError, NoInputError, NothingSelectedError
from ..reading import MOST_JSON_BYTES, parse_json, read_text
from .filters import CONFIG, query_value, read_filters

SCANS = {
    'brain': ('t1w', {'datatype': 'anat', 'suffix': 'T1w'}),
    'lung': ('ct', {'datatype': 'ct', 'suffix': 'ct'}),
}
"""For each modality the name of its query in a filter file, and the query."""

MASKS = {'brain': {'desc': 'brain'}, 'lung': {'label': 'lung'}}
"""For each modality how the mask of its organ is called."""

COMPANIONS = {
    'dseg': {'suffix': 'dseg'},
    'mask': {'suffix': 'mask'},
    'landmarks': {'suffix': 'landmarks', 'extension': '.tsv'},
}
"""Queries for what belongs to a scan; all without ``space``, so in the scan's own space."""

IDENTITY = (
    'session', 'sample', 'task', 'acquisition', 'ceagent', 'tracer', 'staining', 'reconstruction',
    'direction', 'run', 'echo', 'flip', 'inv', 'part', 'chunk',
)  # fmt: skip
"""Entities that tell scans of one person apart; a companion may leave some of them out."""

IMAGES = ('.nii.gz', '.nii')

_OTHER_DATATYPES = ('beh', 'dwi', 'eeg', 'emg', 'fmap', 'func', 'ieeg', 'meg', 'motion', 'mrs',
                    'nirs', 'perf', 'pet', 'figures', 'log')  # fmt: skip


@dataclass(frozen=True)
class Scan:
    """An image and what belongs to it.

    ``stem`` is its file name without suffix and extension (``sub-41_ses-1``), ``space`` the name
    of its space in other files' names (``sub41ses1``), ``uri`` how sidecars refer to it;
    ``problem`` is a sentence where it cannot be said what belongs to it.
    """

    path: Path
    subject: str
    session: str
    stem: str
    suffix: str
    space: str
    uri: str
    mask: Path | None = None
    labels: Path | None = None
    label_table: Path | None = None
    companion_uris: tuple[str, ...] = ()
    landmarks: Path | None = None
    landmarks_uri: str = ''
    problem: str = ''

    @property
    def folder(self) -> str:
        """Where derivatives of this scan go, relative to the output folder."""
        parts = [f'sub-{self.subject}', f'ses-{self.session}' if self.session else '']
        return '/'.join([part for part in parts if part] + [self.path.parent.name])


def space_label(text: str) -> str:
    """A label for ``space-``, ``from-`` and ``to-``: letters and digits only.

    >>> space_label('sub-45_ses-1')
    'sub45ses1'
    """
    return re.sub(r'[^0-9A-Za-z]', '', text)


def find_participants(bids_dir: Path) -> list[str]:
    """Labels of all people of a data set, sorted.

    Raises
    ------
    NoInputError
        The folder does not exist, cannot be read, or holds no ``sub-*`` folder.
    """
    try:
        entries = sorted(os.scandir(bids_dir), key=lambda entry: entry.name)
    except OSError as error:
        raise NoInputError(
            f'The data set "{bids_dir}" cannot be opened ({error.strerror}); expected a folder '
            'with sub-* folders. Check the path.'
        ) from error
    labels = [e.name[4:] for e in entries if e.name.startswith('sub-') and e.is_dir()]
    if not labels:
        raise NoInputError(
            f'"{bids_dir}" holds no sub-* folder; expected a BIDS data set. Check the path.'
        )
    return labels


def choose_participants(
    available: Sequence[str], wanted: Sequence[str], option: str = '--participant-label'
) -> list[str]:
    """The ``wanted`` labels, or all; an unknown one is an error that names those there are."""
    unknown = [label for label in wanted if label not in available]
    if unknown:
        raise NothingSelectedError(
            f'There is no sub-{", sub-".join(unknown)} in the data set; expected some of '
            f'{shorten(available)}. Check {option}.'
        )
    return sorted(wanted) if wanted else list(available)


def shorten(names: Sequence[str], most: int = 12) -> str:
    """A list for a message.

    >>> shorten(['a', 'b', 'c', 'd'], most=2)
    'a, b and 2 more'
    """
    text = ', '.join(names[:most])
    return text + (f' and {len(names) - most} more' if len(names) > most else '')


_File = tuple[Path, dict[str, Any]]
"""A path and its entities."""


class _Companions(NamedTuple):
    """What one derivative data set has: files by kind (a key of COMPANIONS) and by person."""

    name: str
    root: Path
    files: dict[str, dict[str, list[_File]]]


class Catalogue:
    """The scans of some people of a data set and of its derivatives.

    Parameters
    ----------
    bids_dir, derivatives
        The data set's folder, and the folders of further ones with labels, masks and landmarks by
        name.
    subjects
        Labels of the people to index; other people's folders are not even opened.
    modality, sessions, filter_file
        What counts as a scan; the filter file as in :func:`read_filters`.
    """

    def __init__(
        self,
        bids_dir: Path,
        subjects: Iterable[str],
        *,
        derivatives: Mapping[str, Path] | None = None,
        modality: str = 'brain',
        sessions: Sequence[str] = (),
        filter_file: Path | None = None,
    ) -> None:
        subjects = set(subjects)
        self.bids_dir = bids_dir
        self._name, self._query = SCANS[modality]
        self._sessions = list(sessions)
        self._filters = read_filters(filter_file, [self._name, *COMPANIONS])
        self._scans = self._find(_index(bids_dir, subjects), self._query, self._name)
        self._companions: list[_Companions] = []
        queries = {**COMPANIONS, 'mask': {**COMPANIONS['mask'], **MASKS[modality]}}
        for name, path in (derivatives or {}).items():
            if not path.is_dir():
                raise NoInputError(
                    f'The derivatives {name} are to be in "{path}", which is not a folder; check '
                    '--derivatives NAME=PATH.'
                )
            layout = _index(path, subjects)
            found = {
                kind: self._find(layout, {**query, 'space': query_value(None)}, kind)
                for kind, query in queries.items()
            }
            self._companions.append(_Companions(name, Path(os.path.abspath(path)), found))

    def scans(self, subject: str, any_session: bool = False, **entities: Any) -> list[Scan]:
        """Every scan of one person that matches, with what belongs to it, sorted by name."""
        sessions = () if any_session or 'session' in entities else self._sessions
        scans = [
            self._scan(path, own)
            for path, own in self._scans.get(subject, ())
            if (not sessions or own.get('session') in sessions)
            and all(_same(own.get(name), value) for name, value in entities.items())
        ]
        for one, other in zip(scans, scans[1:], strict=False):
            if one.stem == other.stem and one.suffix == other.suffix:
                raise InputDataError(
                    f'"{one.path}" and "{other.path}" are one name for two files; expected one '
                    'of them. Remove the other.'
                )
        return scans

    @property
    def expected(self) -> str:
        """What a scan is called: ``T1w`` or ``ct``, or what the filter file says."""
        return self._wanted['suffix']

    @property
    def example(self) -> str:
        """A file name that would be found."""
        return 'sub-01/{datatype}/sub-01_{suffix}.nii.gz'.format(**self._wanted)

    @property
    def _wanted(self) -> dict[str, Any]:
        """Suffix and data type, where the filter file says them plainly those."""
        filters = self._filters[self._name]
        changed = {key: filters[key] for key in self._query if isinstance(filters.get(key), str)}
        return {**self._query, **changed}

    def _scan(self, path: Path, entities: Mapping[str, Any]) -> Scan:
        stem, _, end = path.name.rpartition('_')
        try:
            belonging = self._belonging(entities)
        except InputDataError as error:
            belonging = {'problem': str(error)}
        return Scan(
            path=path,
            subject=entities['subject'],
            session=str(entities.get('session') or ''),
            stem=stem,
            suffix=end.split('.')[0],
            space=space_label(stem),
            uri=_uri('raw', path, self.bids_dir),
            **belonging,
        )

    def _belonging(self, entities: Mapping[str, Any]) -> dict[str, Any]:
        """What a scan knows of other files, by the names of its fields."""
        mask, mask_uri, _ = self._companion('mask', entities)
        labels, labels_uri, root = self._companion('dseg', entities)
        landmarks, landmarks_uri, _ = self._companion('landmarks', entities)
        return {
            'mask': mask,
            'labels': labels,
            'label_table': find_table(labels, root) if labels else None,
            'companion_uris': tuple(uri for uri in (mask_uri, labels_uri) if uri),
            'landmarks': landmarks,
            'landmarks_uri': landmarks_uri,
        }

    def _companion(
        self, kind: str, entities: Mapping[str, Any]
    ) -> tuple[Path | None, str, Path | None]:
        """The file of that kind which belongs to a scan: first data set that has one."""
        for name, root, files in self._companions:
            found = _closest(files[kind].get(entities['subject'], ()), entities)
            if len(found) > 1:
                names = shorten([path.name for path, _ in found], 4)
                one = json.dumps({kind: _difference([own for _, own in found])})
                raise InputDataError(
                    f'{len(found)} files of the derivatives {name} could be the {kind} of '
                    f'sub-{entities["subject"]} ({names}); expected one. Choose with '
                    f'--bids-filter-file, for example {one}.'
                )
            if found:
                path = found[0][0]
                return path, _uri(name, path, root), root
        return None, '', None

    def _find(self, layout: Any, query: Mapping[str, Any], name: str) -> dict[str, list[_File]]:
        """Files of every person that match a query and its filters: one look at the index."""
        query = {'extension': list(IMAGES), **query, **self._filters[name]}
        files = sorted(layout.get(**query), key=lambda file: file.path)
        found: dict[str, list[_File]] = {}
        for file in files:
            entities = file.get_entities()
            found.setdefault(entities['subject'], []).append((Path(file.path), entities))
        return found


def find_table(labels: Path, root: Path | None) -> Path | None:
    """The table with the names of a label map: beside it or above, as BIDS inheritance has it.

    The closest folder wins, then the table that shares most entities with the label map.
    """
    wanted = set(labels.name.split('.')[0].split('_'))
    folder = labels.parent
    while True:
        tables = [
            (len(parts), table)
            for table in sorted(folder.glob('*dseg.tsv'))
            if (parts := set(table.name.split('.')[0].split('_'))) <= wanted
        ]
        if tables:
            return max(tables)[1]
        if root is None or folder == root or folder == folder.parent:
            return None
        folder = folder.parent


def _index(root: Path, subjects: set[str]) -> Any:
    """A pybids layout of some people's scans and what belongs to them; no metadata."""
    from bids.layout import BIDSLayout, BIDSLayoutIndexer

    _check_description(root)
    people = '|'.join(re.escape(label) for label in sorted(subjects))
    ignore = [
        re.compile(r'^/(?!sub-)'),
        re.compile(rf'^/sub-(?!(?:{people})(?:/|$))'),
        re.compile(rf'/(?:{"|".join(_OTHER_DATATYPES)})(?:/|$)'),
    ]
    indexer = BIDSLayoutIndexer(validate=False, ignore=ignore, index_metadata=False)
    return BIDSLayout(root, validate=False, config=[str(CONFIG)], indexer=indexer)


def _check_description(root: Path) -> None:
    """Refuse a description that pybids stumbles over; without one, or with no JSON, it goes on."""
    path = root / 'dataset_description.json'
    if not os.path.lexists(path):
        return
    expected = 'an object as BIDS has it'
    try:
        content = parse_json(read_text(path, expected, MOST_JSON_BYTES))
    except json.JSONDecodeError:
        return
    except ValueError as error:
        raise InputDataError(f'"{path}" cannot be used ({error}); expected {expected}.') from error
    whole = isinstance(content, dict)
    makers = content.get('GeneratedBy', []) if whole else []
    listed = isinstance(makers, list) and all(isinstance(maker, dict) for maker in makers)
    if not (whole and listed and isinstance(content.get('PipelineDescription', {}), dict)):
        raise InputDataError(
            f'"{path}" or its GeneratedBy is of another kind; expected {expected}. Correct it.'
        )


def _same(own: Any, wanted: str) -> bool:
    """Whether an entity has a value; numbers may be padded with zeros."""
    return str(own) == wanted or (isinstance(own, int) and wanted.isdigit() and own == int(wanted))


def _closest(files: Sequence[_File], entities: Mapping[str, Any]) -> list[_File]:
    """Those of ``files`` that contradict no entity of a scan and share most of them."""
    fitting: dict[int, list[_File]] = {}
    for file in files:
        own = {name: value for name, value in file[1].items() if name in IDENTITY}
        if all(entities.get(name) == value for name, value in own.items()):
            fitting.setdefault(len(own), []).append(file)
    return fitting[max(fitting)] if fitting else []


def _difference(candidates: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A filter that only the first of some files fits: an entity of which it has another value."""
    first, *others = candidates
    for name in dict.fromkeys(name for one in candidates for name in one):
        if all(other.get(name) != first.get(name) for other in others):
            value = first.get(name)
            return {name: value if value is None or type(value) is int else str(value)}
    return {'desc': first.get('desc')}


def _uri(name: str, path: Path, root: Path) -> str:
    inside = Path(os.path.abspath(path)).relative_to(os.path.abspath(root))
    return f'bids:{name}:{inside.as_posix()}'
