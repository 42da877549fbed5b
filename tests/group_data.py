"""Made-up results of pairs, stored as the app stores them."""

from __future__ import annotations

import json

from report_data import made_up_metrics


def store(folder, subject, metrics, fixed='sub45', entities=''):
    """Write a pair's metrics where the app does."""
    name = f'sub-{subject}{entities}_space-{fixed}_desc-nephi_metrics.json'
    path = folder / f'sub-{subject}' / 'anat' / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(metrics if isinstance(metrics, str) else json.dumps(metrics))
    return path


def good(i: int) -> dict:
    """A good pair, each a little different from the others."""
    metrics = made_up_metrics(0.8 + 0.002 * (i % 5), 0.1 + 0.003 * (i % 4))
    metrics['inverse_consistency_mm']['mean'] += 0.01 * (i % 3)
    metrics['jacobian']['deformation']['sd_log'] += 0.01 * (i % 4)
    metrics['moving'] = {'subject': f'{i:02d}', 'file': f'sub-{i:02d}/anat/sub-{i:02d}_T1w.nii.gz'}
    metrics['fixed'] = {'name': 'sub45', 'file': 'sub-45/anat/sub-45_T1w.nii.gz'}
    metrics['seconds'] = {'affine': 5.0, 'optimisation': 50.0 + i}
    metrics['provenance'] = {'seed': i, 'device': 'cpu'}
    return metrics
