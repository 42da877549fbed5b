"""What the tests of reports share: a hostile text, a parser, made-up metrics, a browser."""

from __future__ import annotations

import base64
import hashlib
import re
import shutil
import subprocess
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

HOSTILE = '<script>alert(1)</script>"\'><img src=x onerror=alert(2)>&amp;\x1b\u202e\ud800'
VOID = {'meta', 'img', 'br', 'hr', 'input', 'link'}


class Page(HTMLParser):
    """A parsed page: its tags with attributes, its text, and whether every tag is closed."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.html = html
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ''
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f'</{tag}> closes {self.open[-3:]}'
        self.open.pop()

    def handle_data(self, data):
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        """Attributes of every element of this name."""
        return [attributes for name, attributes in self.tags if name == tag]

    def with_class(self, name: str) -> list[dict[str, str | None]]:
        """Attributes of every element of this class."""
        return [a for _, a in self.tags if name in (a.get('class') or '').split()]


def check_page(path: Path) -> Page:
    """Parse a page and check what must hold for all of them."""
    html = path.read_text(encoding='utf-8')
    page = Page(html)
    assert page.open == []
    ids = Counter(a['id'] for _, a in page.tags if 'id' in a)
    assert [name for name, count in ids.items() if count > 1] == []
    for tag, attributes in page.tags:
        assert not [name for name in attributes if name.startswith('on')], (tag, attributes)
        for name in ('src', 'href', 'action', 'srcset', 'data', 'poster'):
            value = attributes.get(name) or ''
            assert re.match(r'(data:|#|\./|$)', value), (tag, name, value[:60])
    assert 'url(' not in html and '@import' not in html
    (code,) = re.findall('<script>(.*?)</script>', html, re.DOTALL)
    assert len(page.all('script')) == 1
    digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
    policy = page.all('meta')[1]['content']
    assert f"script-src 'sha256-{digest}'" in policy and "default-src 'none'" in policy
    assert all((image.get('alt') or '').strip() for image in page.all('img'))
    return page


def made_up_metrics(dice: float = 0.8, gain: float = 0.1) -> dict:
    """Metrics of a good pair with every figure there is."""
    before, after = dice - gain, dice
    return {
        'dice': {
            'before': {'mean': before, 'labels': {'1': before - 0.1, '2': before + 0.1}},
            'after': {'mean': after, 'labels': {'1': after - 0.05, '2': after + 0.05}},
        },
        'hd95_mm': {
            'before': {'mean': 6.0, 'labels': {'1': 5.0, '2': 7.0}},
            'after': {'mean': 2.5, 'labels': {'1': 2.0, '2': 3.0}},
        },
        'tre_mm': {
            'raw': {'mean': 35.27, 'median': 34.4, 'p90': 38.7, 'max': 49.3, 'n': 51},
            'before': {'mean': 5.0, 'median': 4.5, 'p90': 8.0, 'max': 11.0, 'n': 51},
            'after': {'mean': 1.25, 'median': 1.1, 'p90': 2.0, 'max': 4.0, 'n': 51},
        },
        'tre_inverse_mm': {
            'before': {'mean': 4.8, 'median': 4.4, 'p90': 7.5, 'max': 10.0, 'n': 51},
            'after': {'mean': 1.3, 'median': 1.0, 'p90': 2.1, 'max': 4.2, 'n': 51},
        },
        'masks': {'dice': {'before': 0.91, 'after': 0.97}},
        'volume': {
            'fixed_ml': 2000.0,
            'moving_ml': 2400.0,
            'ratio_by_masks': 1.2,
            'ratio_by_jacobian': 1.23,
            'mismatch': 0.025,
            'local': {'p05': 0.9, 'median': 1.2, 'p95': 1.5},
            'folds': {'voxels': 80000, 'count': 0, 'percent': 0.0},
        },
        'folds': {
            'exact': {'points': 50000, 'count': 0, 'percent': 0.0, 'min': 0.21},
            'lattice': {'voxels': 80000, 'count': 0, 'percent': 0.0, 'min': 0.19},
            'finite_difference': {
                'voxels': 80000,
                'central_count': 0,
                'central_percent': 0.0,
                'digital_count': 0,
                'digital_percent': 0.0,
                'ndv_mm3': 0.0,
                'ndv_percent': 0.0,
            },
        },
        'jacobian': {
            'total': {'min': 0.2, 'p01': 0.5, 'p99': 2.1, 'max': 3.0, 'sd_log': 0.35},
            'deformation': {'min': 0.22, 'p01': 0.55, 'p99': 2.2, 'max': 3.1, 'sd_log': 0.35},
        },
        'inverse_consistency_mm': {'mean': 0.2, 'p95': 0.6, 'max': 2.0},
        'similarity': {'before': 0.7, 'after': 0.9},
        'displacement_mm': {'mean': 3.0, 'p95': 7.0, 'max': 12.0},
    }


def chromium() -> str | None:
    """The browser, where there is one."""
    names = ('chromium', 'chromium-browser', 'google-chrome')
    return next((found for name in names if (found := shutil.which(name))), None)


def rendered(path: Path, scratch: Path, script: str = '') -> str:
    """A page's elements after its scripts ran in headless Chromium, as HTML.

    ``script`` runs after the page's own; the policy that would forbid it is taken out.
    """
    if script:
        html = path.read_text(encoding='utf-8')
        html = re.sub('<meta http-equiv="Content-Security-Policy"[^>]*>', '', html)
        path = scratch / 'scripted.html'
        path.write_text(html.replace('</body>', f'<script>{script}</script></body>'))
    command = [
        chromium(), '--headless', '--no-sandbox', '--disable-gpu', '--disable-quic',
        '--no-first-run', '--disable-background-networking', '--disable-component-update',
        '--disable-sync', f'--user-data-dir={scratch / "profile"}', '--dump-dom', path.as_uri(),
    ]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


HISTORY = [
    {'step': i, 'level': i // 20, 'similarity': 0.5 + i / 200, 'regularity': 10 ** (-i / 20)}
    for i in range(60)
]
