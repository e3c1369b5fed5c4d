"""Write the report of the committed rows: `python -m benchmarks.report`, or `make report`."""

from pathlib import Path

from benchmarks.report.document import PLOTS, make_report
from benchmarks.rows import RESULTS
from benchmarks.serving.command import run_command
from lct_deploy.atomic import atomic_file

ROOT = Path(__file__).parent.parent.parent


def main() -> None:
    """Tables and plots of benchmarks/results in docs/benchmarks.md, and the README's headline."""
    report = make_report(RESULTS, ROOT)
    (ROOT / PLOTS).mkdir(exist_ok=True)
    for path, text in report.files.items():
        with atomic_file(ROOT / path) as temporary:
            temporary.write_text(text, encoding="utf-8")
        print(path)
    for plot in (ROOT / PLOTS).glob("*.svg"):
        if plot.relative_to(ROOT) not in report.files:
            plot.unlink()
            print(f"{plot.relative_to(ROOT)}: removed")


if __name__ == "__main__":
    run_command(main)
