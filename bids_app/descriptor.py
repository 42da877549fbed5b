"""The Boutiques descriptor of ``nephi-pipe``, made from its parser.

The BIDS execution specification wants one that ``nephi-pipe --bids-exec-spec`` prints. Platforms
read from it what can be set, make forms and command lines of it, and learn what exit codes mean.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .. import __version__
from ..errors import NePhiError
from .settings import LEVEL_NAMES

SPECIFICATION = '0.1.0'
"""Version of the BIDS execution specification."""

SCHEMA = '0.5'
"""Version of the Boutiques schema."""

IDS = {
    'bids_dir': 'InputDataset',
    'output_dir': 'OutputLocation',
    'levels': 'AnalysisLevel',
    'participant_label': 'SubjectLabel',
    'session_label': 'SessionLabel',
    'help': 'Help',
    'version': 'ToolVersion',
}
"""What the specification calls our arguments; the others are called as their option is."""

SUCCESS = {'code': 0, 'description': 'Everything that was asked for is done.'}


class PrintDescriptor(argparse.Action):
    """Prints the descriptor of the parser it belongs to, and ends the program."""

    def __init__(self, option_strings: Any, dest: str, **kwargs: Any) -> None:
        super().__init__(option_strings, dest, nargs=0, **kwargs)

    def __call__(self, parser: Any, namespace: Any, values: Any, option: Any = None) -> None:
        print(json.dumps(describe_parser(parser), indent=2))
        parser.exit()


def describe_parser(parser: argparse.ArgumentParser) -> dict[str, Any]:
    """The descriptor, as JSON holds it.

    Parameters
    ----------
    parser
        That of ``nephi-pipe``. Its positional arguments come first on the command line, since an
        option with several values would take what follows it.

    Returns
    -------
    dict
        Valid by the Boutiques schema 0.5; ``bosh`` makes command lines from it.
    """
    groups = [(group.title or '', _shown(group._group_actions)) for group in parser._action_groups]
    actions = [action for _, members in groups for action in members]
    keys = ' '.join(_key(action) for action in sorted(actions, key=_is_option))
    return {
        'name': 'nephi_pipe',
        'tool-version': __version__,
        'schema-version': SCHEMA,
        'description': parser.description or '',
        'author': 'nephi_pipe developers',
        'command-line': f'{parser.prog} {keys}',
        'inputs': [_input(action) for action in actions],
        'groups': [
            {
                'id': _camel(title),
                'name': title,
                'members': [_id(action) for action in members],
            }
            for title, members in groups
            if members
        ],
        'output-files': _outputs(actions),
        'error-codes': [SUCCESS, *_error_codes()],
        'tags': {'domain': ['neuroinformatics', 'image registration']},
        'custom': {
            'BIDSApplicationVersion': SPECIFICATION,
            'BIDSAppSpecVersion': SPECIFICATION,
            'OutputDataSpecification': ['BIDS-Derivatives'],
        },
    }


def _shown(actions: list[argparse.Action]) -> list[argparse.Action]:
    return [action for action in actions if not isinstance(action, PrintDescriptor)]


def _is_option(action: argparse.Action) -> bool:
    return bool(action.option_strings)


def _flag(action: argparse.Action) -> str:
    """The long spelling of an option, empty for a positional argument."""
    return max(action.option_strings, key=len, default='')


def _id(action: argparse.Action) -> str:
    return IDS.get(action.dest) or _camel(_flag(action) or action.dest)


def _camel(text: str) -> str:
    """Words joined in CamelCase.

    >>> _camel('--bids-filter-file'), _camel('how it is registered')
    ('BidsFilterFile', 'HowItIsRegistered')
    """
    words = text.replace('-', ' ').replace('_', ' ').split()
    return ''.join(word[0].upper() + word[1:] for word in words)


def _key(action: argparse.Action) -> str:
    return f'[{_id(action).upper()}]'


def _input(action: argparse.Action) -> dict[str, Any]:
    """One argument as Boutiques describes it."""
    found = {
        'id': _id(action),
        'name': (_flag(action) or action.dest).lstrip('-').replace('-', ' ').replace('_', ' '),
        'description': _plain(action.help or ''),
        'value-key': _key(action),
        'optional': _is_option(action),
        **_type(action),
    }
    if _is_option(action):
        found['command-line-flag'] = _flag(action)
    if action.nargs == '+':
        found.update({'list': True, 'min-list-entries': 1})
    if found['id'] == 'InputDataset':  # a list by the specification, of one in our form
        found.update({'list': True, 'min-list-entries': 1, 'max-list-entries': 1})
    if found['id'] == 'AnalysisLevel':
        found['value-choices'] = list(LEVEL_NAMES)
        words = ', '.join(f'{theirs} for {ours}' for theirs, ours in LEVEL_NAMES.items())
        found['description'] += f' (here: {words})'
    return found


def _plain(text: str) -> str:
    text = text.replace('%%', '%')
    return text[:1].upper() + text[1:]


def _type(action: argparse.Action) -> dict[str, Any]:
    if action.nargs == 0:
        return {'type': 'Flag'}
    if action.choices:
        return {'type': 'String', 'value-choices': list(action.choices)}
    if action.type is Path:
        return {'type': 'File'}
    if action.type is int:
        return {'type': 'Number', 'integer': True}
    return {'type': 'String'}


def _outputs(actions: list[argparse.Action]) -> list[dict[str, Any]]:
    (folder,) = (_key(action) for action in actions if action.dest == 'output_dir')
    files = {
        'OutputDataset': ('dataset_description.json', 'The results, a BIDS derivatives data set.'),
        'SubjectReports': ('sub-*.html', 'A page for each person, with pictures and scores.'),
        'GroupTable': ('group_*.tsv', 'Scores and flags of all pairs, from the level dataset.'),
    }
    return [
        {
            'id': name,
            'name': name,
            'description': description,
            'path-template': f'{folder}/{pattern}',
            'optional': True,
        }
        for name, (pattern, description) in files.items()
    ]


def _error_codes() -> list[dict[str, Any]]:
    """Every exit code and what it means, from the errors themselves."""
    meanings: dict[int, str] = {}
    for error in _family(NePhiError):
        meanings.setdefault(error.exit_code, (error.__doc__ or '').partition('\n')[0])
    meanings[NePhiError.exit_code] = 'Some people failed, or something that has no code.'
    return [{'code': code, 'description': meanings[code]} for code in sorted(meanings)]


def _family(error: type[NePhiError]) -> Iterator[type[NePhiError]]:
    yield error
    for child in error.__subclasses__():
        yield from _family(child)
