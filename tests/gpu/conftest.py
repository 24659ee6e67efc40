from __future__ import annotations


def pytest_terminal_summary(terminalreporter, config) -> None:
    """Print in `pytest -m gpu` why tests were skipped, which pytest does with `-rs` only."""
    if config.option.markexpr != 'gpu':
        return
    reports = terminalreporter.stats.get('skipped', [])
    reasons = [str(report.longrepr[2]) for report in reports if '/gpu/' in report.nodeid]
    for reason in dict.fromkeys(reasons):
        terminalreporter.write_line(f'skipped: {reason.removeprefix("Skipped: ")}')
